//! Reading all partitions of a consumer through one queue.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;

use crate::kafka::{Client, Consumer, Message, Queue};
use crate::messages::{Messages, Run};

const FORWARD_INTERVAL: Duration = Duration::from_millis(100);
const MAX_COUNT: usize = 1_000_000;

/// Topic, partition, code, offset and text of an error event.
type Event = (String, i32, i32, i64, String);

/// Reads the partitions of a consumer without a Python object per message.
///
/// The consumer stays the member of the group: its `poll(0)` serves all callbacks. Close the reader before the consumer.
#[pyclass(frozen, module = "worker_native")]
pub struct Reader {
    state: Mutex<Option<State>>, // taken only without the GIL, for it is held while a read waits
    consumer: Consumer,
}

struct State {
    queue: Queue,
    attached: BTreeMap<(String, i32), Queue>,
    forwarded: Instant,   // when `forward` last did its work
    runs: Vec<Weak<Run>>, // those of which messages may be alive
}

impl State {
    fn read(&mut self, count: usize, timeout_ms: i32) -> PyResult<(Vec<Messages>, Vec<Event>)> {
        self.forward();
        let (errors, messages) = without_errors(self.queue.read(count, timeout_ms)?);
        let mut runs = Vec::new();
        for messages in split(messages) {
            let (messages, run) = Messages::new(messages);
            self.keep_track(&run);
            runs.push(messages);
        }
        Ok((runs, errors.iter().map(event).collect()))
    }

    fn attach(&mut self, client: &Client, topic: String, partition: i32) -> PyResult<()> {
        let queue = client.partition_queue(&topic, partition)?;
        queue.forward(&self.queue);
        self.attached.insert((topic, partition), queue);
        Ok(())
    }

    fn detach(&mut self, client: &Client, topic: String, partition: i32) -> PyResult<()> {
        if let Some(queue) = self.attached.remove(&(topic, partition)) {
            queue.forward(&client.poll_queue()?);
        }
        Ok(())
    }

    /// Forward the partitions' queues again: librdkafka undoes it when it stops fetching, which it does after `assign`
    /// has returned (rd_kafka_toppar_fetch_stop). Until then messages wait in the partition's queue.
    fn forward(&mut self) {
        if self.forwarded.elapsed() >= FORWARD_INTERVAL {
            self.attached
                .values()
                .for_each(|partition| partition.forward(&self.queue));
            self.forwarded = Instant::now();
        }
    }

    fn give_back(&self, client: &Client) -> PyResult<()> {
        let queue = client.poll_queue()?;
        self.attached
            .values()
            .for_each(|partition| partition.forward(&queue));
        Ok(())
    }

    fn keep_track(&mut self, run: &Arc<Run>) {
        if self.runs.len() == self.runs.capacity() {
            self.runs.retain(|run| run.strong_count() > 0);
            self.runs.reserve(self.runs.len()); // so that this is not done for each run
        }
        self.runs.push(Arc::downgrade(run));
    }
}

fn event(error: &Message) -> Event {
    (
        error.topic(),
        error.partition(),
        error.error_code(),
        error.offset(),
        error.error_text(),
    )
}

/// Return the error events, and the messages.
fn without_errors(read: Vec<Message>) -> (Vec<Message>, Vec<Message>) {
    let is_error = |message: &Message| message.error_code() != 0;
    if read.iter().any(is_error) {
        return read.into_iter().partition(is_error);
    }
    (Vec::new(), read)
}

/// Split messages where the partition changes, or its offsets do not ascend.
fn split(messages: Vec<Message>) -> Vec<Vec<Message>> {
    let lengths: Vec<usize> = messages.chunk_by(continues).map(<[Message]>::len).collect();
    let mut rest = messages.into_iter();
    let runs = lengths
        .into_iter()
        .map(|length| rest.by_ref().take(length).collect());
    runs.collect()
}

fn continues(last: &Message, next: &Message) -> bool {
    last.shares_partition(next) && last.offset() < next.offset()
}

impl Reader {
    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Call `work` with the state and without the GIL; a panic becomes a RuntimeError. Raises it also once closed.
    fn with_state<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut State) -> PyResult<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| {
            let mut state = self.lock();
            let state = state
                .as_mut()
                .ok_or_else(|| PyRuntimeError::new_err("the reader is closed"))?;
            catch_unwind(AssertUnwindSafe(|| work(state))).unwrap_or_else(|panic| Err(bug(&*panic)))
        })
    }

    fn shut(&self, client: Option<Client>) -> PyResult<()> {
        let Some(state) = self.lock().take() else {
            return Ok(());
        };
        let returned = client.map_or(Ok(()), |client| state.give_back(&client));
        state
            .runs
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|run| run.release());
        returned
    }
}

fn bug(panic: &(dyn Any + Send)) -> PyErr {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or(panic.downcast_ref::<&str>().copied());
    PyRuntimeError::new_err(format!("bug in worker_native: {}", text.unwrap_or("panic")))
}

#[pymethods]
impl Reader {
    /// Raises ValueError, with the reason, where this consumer cannot be read.
    #[new]
    fn new(py: Python<'_>, consumer: &Bound<'_, PyAny>, library: PathBuf) -> PyResult<Reader> {
        let consumer = Consumer::new(consumer, &library)?;
        let queue = consumer.client(py)?.new_queue()?;
        let state = State {
            queue,
            attached: BTreeMap::new(),
            forwarded: Instant::now(),
            runs: Vec::new(),
        };
        Ok(Reader {
            state: Mutex::new(Some(state)),
            consumer,
        })
    }

    /// Read a partition, which may not be assigned yet. Call it at every assignment: a revocation ends it.
    fn attach(&self, py: Python<'_>, topic: String, partition: i32) -> PyResult<()> {
        let client = self.consumer.client(py)?;
        self.with_state(py, |state| state.attach(&client, topic, partition))
    }

    /// Leave a partition to the consumer. What was fetched before still comes from `read`.
    fn detach(&self, py: Python<'_>, topic: String, partition: i32) -> PyResult<()> {
        let client = self.consumer.client(py)?;
        py.detach(|| match &mut *self.lock() {
            Some(state) => state.detach(&client, topic, partition),
            None => Ok(()), // `close` has detached it
        })
    }

    /// Wait up to `timeout_ms` for `count` messages and error events, without the GIL.
    ///
    /// Returns runs of messages, in the order read, and events: topic, partition, error code, offset, text.
    fn read(
        &self,
        py: Python<'_>,
        count: usize,
        timeout_ms: i32,
    ) -> PyResult<(Vec<Messages>, Vec<Event>)> {
        self.consumer.client(py)?;
        if !(1..=MAX_COUNT).contains(&count) || timeout_ms < 0 {
            return Err(PyValueError::new_err(format!(
                "cannot read {count} messages in {timeout_ms} ms"
            )));
        }
        self.with_state(py, |state| state.read(count, timeout_ms))
    }

    /// Free all messages and the queue, and leave the partitions to the consumer. Fetched messages are dropped.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let client = self.consumer.client(py).ok();
        py.detach(|| self.shut(client))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(self.consumer.object())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let client = Python::attach(|py| self.consumer.client(py).ok());
        // An error only concerns messages that nobody can read any more.
        let _ = self.shut(client);
    }
}
