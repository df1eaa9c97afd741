/* The floor without Python: librdkafka throws every message away. Built by the benchmark:
 *     cc -O2 discard.c -lrdkafka   (or against the library that the confluent-kafka wheel carries)
 * Arguments: bootstrap topic group partitions. Prints how many messages it has read. */
#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void set(rd_kafka_conf_t *conf, const char *name, const char *value) {
    char error[256];
    if (rd_kafka_conf_set(conf, name, value, error, sizeof error) != RD_KAFKA_CONF_OK) {
        fprintf(stderr, "%s\n", error);
        exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: discard BOOTSTRAP TOPIC GROUP PARTITIONS; librdkafka %s\n", rd_kafka_version_str());
        return 2;
    }
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    set(conf, "bootstrap.servers", argv[1]);
    set(conf, "group.id", argv[3]);
    set(conf, "auto.offset.reset", "earliest");
    set(conf, "enable.auto.commit", "false");
    set(conf, "enable.partition.eof", "true");
    set(conf, "queued.max.messages.kbytes", "32768");
    set(conf, "fetch.wait.max.ms", "50");
    set(conf, "fetch.min.bytes", "65536");
    char error[256];
    /* Since librdkafka 2.2. Older ones wait a second whenever the queue is full: it should never be. */
    int old = rd_kafka_conf_set(conf, "fetch.queue.backoff.ms", "1", error, sizeof error) != RD_KAFKA_CONF_OK;
    set(conf, "queued.min.messages", old ? "1000000" : "10000");
    rd_kafka_t *consumer = rd_kafka_new(RD_KAFKA_CONSUMER, conf, error, sizeof error);
    if (!consumer) {
        fprintf(stderr, "%s\n", error);
        return 1;
    }
    rd_kafka_poll_set_consumer(consumer);
    rd_kafka_topic_partition_list_t *topics = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_list_add(topics, argv[2], RD_KAFKA_PARTITION_UA);
    rd_kafka_subscribe(consumer, topics);
    rd_kafka_topic_partition_list_destroy(topics);

    rd_kafka_queue_t *queue = rd_kafka_queue_get_consumer(consumer);
    rd_kafka_message_t *messages[1000];
    long read = 0;
    int ends = 0, partitions = atoi(argv[4]);
    while (ends < partitions) {
        ssize_t count = rd_kafka_consume_batch_queue(queue, 100, messages, 1000);
        for (ssize_t i = 0; i < count; i++) {
            if (!messages[i]->err)
                read++;
            else if (messages[i]->err == RD_KAFKA_RESP_ERR__PARTITION_EOF)
                ends++;
            rd_kafka_message_destroy(messages[i]);
        }
    }
    rd_kafka_queue_destroy(queue);
    rd_kafka_consumer_close(consumer);
    rd_kafka_destroy(consumer);
    printf("%ld\n", read);
    return 0;
}
