//! Runs of messages of one partition, as Python sees them.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use pyo3::exceptions::{PyIndexError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyRange};

use crate::kafka::{Header, Message};

/// The messages of a run, until they are released.
pub struct Run(RwLock<Option<Vec<Message>>>);

impl Run {
    /// Free the messages when nobody looks at them. Call it without the GIL.
    pub fn release(&self) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

/// What outlives the messages of a run.
struct Log {
    topic: String,
    partition: i32,
    first: i64,
    end: i64,
    sparse: Option<Vec<i64>>, // the offsets, if there are gaps between them
}

impl Log {
    fn of(messages: &[Message]) -> Log {
        let (first, end) = (
            messages[0].offset(),
            messages[messages.len() - 1].offset() + 1,
        );
        let is_dense = end - first == messages.len() as i64;
        Log {
            topic: messages[0].topic(),
            partition: messages[0].partition(),
            first,
            end,
            sparse: (!is_dense).then(|| messages.iter().map(Message::offset).collect()),
        }
    }

    /// The offset of a message, or `end` after the last.
    fn offset(&self, index: usize) -> i64 {
        match &self.sparse {
            Some(offsets) => offsets.get(index).copied().unwrap_or(self.end),
            None => self.first + index as i64,
        }
    }
}

struct Summary {
    timestamp_ms: i64,
    size: usize,
    tombstones: usize,
}

impl Summary {
    fn of(messages: &[Message]) -> Summary {
        let mut summary = Summary {
            timestamp_ms: messages.first().map_or(-1, |message| message.timestamp().1),
            size: 0,
            tombstones: 0,
        };
        for message in messages {
            match message.payload() {
                Some(payload) => summary.size += payload.len(),
                None => summary.tombstones += 1,
            }
        }
        summary
    }
}

/// Consecutive messages of one partition. They pin whole fetch buffers: release them soon.
#[pyclass(frozen, module = "worker_native")]
pub struct Messages {
    run: Mutex<Option<Arc<Run>>>,
    log: Arc<Log>,
    range: Range<usize>, // the part of the run
    summary: Summary,
}

impl Messages {
    /// Make a run of messages, at least one, and also return what owns them.
    pub fn new(messages: Vec<Message>) -> (Messages, Arc<Run>) {
        let (log, summary, range) = (
            Log::of(&messages).into(),
            Summary::of(&messages),
            0..messages.len(),
        );
        let run = Arc::new(Run(RwLock::new(Some(messages))));
        (
            Messages {
                run: Mutex::new(Some(run.clone())),
                log,
                range,
                summary,
            },
            run,
        )
    }

    /// Call `visit` with the messages. Raises RuntimeError if they were released.
    ///
    /// Call it without the GIL where it takes long. `visit` must not take the GIL: a thread that has it may wait for
    /// `visit` to end, to release the messages.
    pub fn with_messages<T>(&self, visit: impl FnOnce(&[Message]) -> T) -> PyResult<T> {
        let run = self.run()?;
        let messages = run.0.read().unwrap_or_else(PoisonError::into_inner);
        let messages = messages.as_ref().ok_or_else(released)?;
        Ok(visit(&messages[self.range.clone()]))
    }

    fn run(&self) -> PyResult<Arc<Run>> {
        self.run
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .ok_or_else(released)
    }

    fn check(&self, index: usize) -> PyResult<usize> {
        if index < self.range.len() {
            Ok(index)
        } else {
            Err(PyIndexError::new_err(format!("no message {index}")))
        }
    }
}

fn released() -> PyErr {
    PyRuntimeError::new_err("the messages were released")
}

#[pymethods]
impl Messages {
    fn __len__(&self) -> usize {
        self.range.len()
    }

    fn __repr__(&self) -> String {
        format!(
            "<Messages of {}[{}]: {} before offset {}>",
            self.log.topic,
            self.log.partition,
            self.range.len(),
            self.end()
        )
    }

    #[getter]
    fn topic(&self) -> &str {
        &self.log.topic
    }

    #[getter]
    fn partition(&self) -> i32 {
        self.log.partition
    }

    /// The offset after the last message.
    #[getter]
    fn end(&self) -> i64 {
        match self.range {
            Range { start, end } if start < end => self.log.offset(end - 1) + 1,
            Range { start, .. } => self.log.offset(start),
        }
    }

    /// The time of the first message; -1: it has none.
    #[getter]
    fn timestamp_ms(&self) -> i64 {
        self.summary.timestamp_ms
    }

    /// The bytes of all payloads.
    #[getter]
    fn size(&self) -> usize {
        self.summary.size
    }

    /// How many messages have no payload.
    #[getter]
    fn tombstones(&self) -> usize {
        self.summary.tombstones
    }

    /// The offsets: a range if there are no gaps between them, else a list.
    fn offsets<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let first = self.log.offset(self.range.start);
        match &self.log.sparse {
            Some(offsets) if self.end() - first != self.range.len() as i64 => {
                offsets[self.range.clone()].into_pyobject(py)
            }
            _ => Ok(PyRange::new(py, first as isize, self.end() as isize)?.into_any()),
        }
    }

    fn payload<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let index = self.check(index)?;
        self.with_messages(|messages| {
            messages[index]
                .payload()
                .map(|bytes| PyBytes::new(py, bytes))
        })
    }

    fn key<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let index = self.check(index)?;
        self.with_messages(|messages| messages[index].key().map(|bytes| PyBytes::new(py, bytes)))
    }

    /// Type and time in ms, as `confluent_kafka.Message.timestamp()` returns them.
    fn timestamp(&self, index: usize) -> PyResult<(i32, i64)> {
        let index = self.check(index)?;
        self.with_messages(|messages| messages[index].timestamp())
    }

    /// Names and values in their order; invalid UTF-8 in a name is replaced.
    fn headers<'py>(
        &self,
        py: Python<'py>,
        index: usize,
    ) -> PyResult<Vec<(String, Option<Bound<'py, PyBytes>>)>> {
        let index = self.range.start + self.check(index)?;
        let run = self.run()?;
        let headers: Vec<Header> = py.detach(|| {
            let mut messages = run.0.write().unwrap_or_else(PoisonError::into_inner);
            Ok::<_, PyErr>(messages.as_mut().ok_or_else(released)?[index].headers())
        })?;
        Ok(headers
            .into_iter()
            .map(|(name, value)| (name, value.map(|value| PyBytes::new(py, &value))))
            .collect())
    }

    /// Return the messages of these indices. They share the memory: it is freed when all have released it.
    fn slice(&self, start: usize, stop: usize) -> PyResult<Messages> {
        let stop = stop.min(self.range.len());
        let start = start.min(stop);
        Ok(Messages {
            summary: self.with_messages(|messages| Summary::of(&messages[start..stop]))?,
            run: Mutex::new(Some(self.run()?)),
            log: self.log.clone(),
            range: self.range.start + start..self.range.start + stop,
        })
    }

    /// Let go of the messages. What was read of the attributes stays readable.
    fn release(&self, py: Python<'_>) {
        let run = self
            .run
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        py.detach(|| drop(run));
    }
}
