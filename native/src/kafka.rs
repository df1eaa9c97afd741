//! The part of librdkafka that reading needs, behind safe types. All unsafe code of the package is in this file.
//!
//! Types and functions are those of librdkafka's `rdkafka.h` (2.x; its ABI only grows within a major version).
//! No callback goes from librdkafka into Rust, so no panic can cross into C.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::{Mutex, PoisonError};

use libloading::os::unix::{Library as SharedObject, RTLD_NOW};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

/// `dlopen` succeeds only for what is loaded already.
const RTLD_NOLOAD: c_int = if cfg!(target_os = "macos") { 0x10 } else { 0x4 };

/// A header's name and value.
pub type Header = (String, Option<Vec<u8>>);

type RawClient = c_void; // rd_kafka_t
type RawQueue = c_void; // rd_kafka_queue_t
type Topic = c_void; // rd_kafka_topic_t
type Headers = c_void; // rd_kafka_headers_t

/// `rd_kafka_message_t` of rdkafka.h.
#[repr(C)]
struct RawMessage {
    err: c_int,
    rkt: *mut Topic,
    partition: i32,
    payload: *mut c_void, // of an error: its text
    len: usize,
    key: *mut c_void,
    key_len: usize,
    offset: i64,
    private: *mut c_void,
}

macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions of one loaded librdkafka.
        struct Functions { $($name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)* }

        impl Functions {
            fn load(library: &SharedObject) -> Result<Functions, libloading::Error> {
                // SAFETY: the types are those of rdkafka.h, and librdkafka stays loaded (see Library).
                unsafe {
                    Ok(Functions { $($name: *library.get(concat!("rd_kafka_", stringify!($name), "\0").as_bytes())?,)* })
                }
            }
        }
    };
}

functions! {
    name: fn(*const RawClient) -> *const c_char;
    last_error: fn() -> c_int;
    err2str: fn(c_int) -> *const c_char;
    topic_name: fn(*const Topic) -> *const c_char;
    queue_new: fn(*mut RawClient) -> *mut RawQueue;
    queue_destroy: fn(*mut RawQueue);
    queue_forward: fn(*mut RawQueue, *mut RawQueue);
    queue_get_consumer: fn(*mut RawClient) -> *mut RawQueue;
    queue_get_partition: fn(*mut RawClient, *const c_char, i32) -> *mut RawQueue;
    consume_batch_queue: fn(*mut RawQueue, c_int, *mut *mut RawMessage, usize) -> isize;
    message_destroy: fn(*mut RawMessage);
    message_timestamp: fn(*const RawMessage, *mut c_int) -> i64;
    message_headers: fn(*const RawMessage, *mut *mut Headers) -> c_int;
    header_get_all: fn(*const Headers, usize, *mut *const c_char, *mut *const c_void, *mut usize) -> c_int;
}

/// A librdkafka that the process has loaded. It stays loaded: every message needs it.
struct Library {
    functions: Functions,
    _object: SharedObject,
}

impl Library {
    /// Return the library at `path`, which must be the copy that `extension` (a Python module's file) is linked to.
    fn get(path: &Path, extension: &Path) -> PyResult<&'static Library> {
        static LIBRARIES: Mutex<Vec<(PathBuf, &'static Library)>> = Mutex::new(Vec::new());
        let mut libraries = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, library)) = libraries.iter().find(|(known, _)| known == path) {
            return Ok(library);
        }
        let object = open_loaded(path)?;
        let functions = Functions::load(&object).map_err(|error| {
            PyValueError::new_err(format!("{} is not librdkafka 2: {error}", path.display()))
        })?;
        // A lookup in an extension module searches the libraries that it is linked to.
        let linked = Functions::load(&open_loaded(extension)?)
            .map_err(|error| PyValueError::new_err(format!("{}: {error}", extension.display())))?;
        if linked.queue_new as usize != functions.queue_new as usize {
            let text = format!(
                "{} is not the librdkafka of {}",
                path.display(),
                extension.display()
            );
            return Err(PyValueError::new_err(text));
        }
        let library: &'static Library = Box::leak(Box::new(Library {
            functions,
            _object: object,
        }));
        libraries.push((path.to_owned(), library));
        Ok(library)
    }

    fn error_text(&self, code: c_int) -> String {
        // SAFETY: librdkafka returns a static text for every code.
        unsafe { text((self.functions.err2str)(code)) }
    }
}

fn open_loaded(path: &Path) -> PyResult<SharedObject> {
    // SAFETY: with RTLD_NOLOAD no code of the file runs.
    unsafe { SharedObject::open(Some(path), RTLD_NOW | RTLD_NOLOAD) }.map_err(|_| {
        PyValueError::new_err(format!(
            "{} is not a library that is loaded",
            path.display()
        ))
    })
}

/// A `confluent_kafka.Consumer`, kept alive.
pub struct Consumer {
    object: Py<PyAny>,
    client: Client,
}

impl Consumer {
    /// Raises ValueError if `object` is no open Consumer, or does not use the librdkafka at `path`.
    pub fn new(object: &Bound<'_, PyAny>, path: &Path) -> PyResult<Consumer> {
        let extension = object.py().import("confluent_kafka.cimpl")?;
        // Not isinstance, which believes an object's __class__.
        if !object
            .get_type()
            .is_subclass(&extension.getattr("Consumer")?)?
        {
            return Err(PyValueError::new_err(format!(
                "{} is not a confluent_kafka.Consumer",
                object.get_type()
            )));
        }
        let library = Library::get(path, &extension.getattr("__file__")?.extract::<PathBuf>()?)?;
        let raw =
            client_of(object).ok_or_else(|| PyValueError::new_err("the consumer is closed"))?;
        let client = Client { raw, library };
        client.check_is_consumer()?;
        Ok(Consumer {
            object: object.clone().unbind(),
            client,
        })
    }

    /// The Python object, for the garbage collector.
    pub fn object(&self) -> &Py<PyAny> {
        &self.object
    }

    /// Return the client. Raises RuntimeError if the consumer was closed.
    pub fn client(&self, py: Python<'_>) -> PyResult<Client> {
        match client_of(self.object.bind(py)) {
            Some(raw) if raw == self.client.raw => Ok(self.client),
            _ => Err(PyRuntimeError::new_err("the consumer is closed")),
        }
    }
}

/// The client of a `confluent_kafka.Consumer`: the first field after the object's header. None: it is closed.
fn client_of(object: &Bound<'_, PyAny>) -> Option<NonNull<RawClient>> {
    const HEADER: usize = 2; // pointer-sized words: PyObject_HEAD of builds with the GIL
    // SAFETY: the object is a Consumer, so it has the field, which changes only while the GIL is held.
    NonNull::new(unsafe { *object.as_ptr().cast::<*mut RawClient>().add(HEADER) })
}

/// A consumer's client in librdkafka. Get it anew for each call: it ends when the consumer is closed.
#[derive(Clone, Copy)]
pub struct Client {
    raw: NonNull<RawClient>,
    library: &'static Library,
}

// SAFETY: librdkafka's clients may be used in any thread.
unsafe impl Send for Client {}
// SAFETY: the same.
unsafe impl Sync for Client {}

impl Client {
    fn check_is_consumer(&self) -> PyResult<()> {
        // SAFETY: the client is open, and its name a text that lives as long.
        let name = unsafe { text((self.library.functions.name)(self.raw.as_ptr())) };
        if name.contains("#consumer-") {
            return Ok(());
        }
        Err(PyValueError::new_err(format!(
            "{name:?} is not the name of a librdkafka consumer"
        )))
    }

    /// Return a new queue.
    pub fn new_queue(&self) -> PyResult<Queue> {
        // SAFETY: the client is open.
        let raw = unsafe { (self.library.functions.queue_new)(self.raw.as_ptr()) };
        self.queue(raw, "a new queue")
    }

    /// Return the queue that `Consumer.poll` reads.
    pub fn poll_queue(&self) -> PyResult<Queue> {
        // SAFETY: the client is open.
        let raw = unsafe { (self.library.functions.queue_get_consumer)(self.raw.as_ptr()) };
        self.queue(raw, "the consumer's queue")
    }

    /// Return the queue of a partition.
    pub fn partition_queue(&self, topic: &str, partition: i32) -> PyResult<Queue> {
        let name = CString::new(topic)?;
        if topic.is_empty() || partition < 0 {
            return Err(PyValueError::new_err(format!(
                "{topic}[{partition}] is not a partition"
            )));
        }
        let get = self.library.functions.queue_get_partition;
        // SAFETY: the client is open, and the name lives until the call has returned.
        let raw = unsafe { get(self.raw.as_ptr(), name.as_ptr(), partition) };
        self.queue(raw, &format!("the queue of {topic}[{partition}]"))
    }

    fn queue(&self, raw: *mut RawQueue, what: &str) -> PyResult<Queue> {
        let raw = NonNull::new(raw)
            .ok_or_else(|| PyRuntimeError::new_err(format!("librdkafka does not return {what}")))?;
        Ok(Queue {
            raw,
            library: self.library,
        })
    }
}

/// A handle of one of librdkafka's queues.
pub struct Queue {
    raw: NonNull<RawQueue>,
    library: &'static Library,
}

// SAFETY: librdkafka's queues may be used in any thread.
unsafe impl Send for Queue {}
// SAFETY: the same.
unsafe impl Sync for Queue {}

impl Queue {
    /// Have what comes into this queue delivered to another. What waits in it moves there, in order.
    pub fn forward(&self, to: &Queue) {
        // SAFETY: both queues are alive; librdkafka counts its own reference to `to`.
        unsafe { (self.library.functions.queue_forward)(self.raw.as_ptr(), to.raw.as_ptr()) };
    }

    /// Wait up to `timeout_ms` for `count` messages and error events, and return those that came.
    ///
    /// Call it without the GIL. The consumer must not be closed before it returns, as with `Consumer.consume`.
    pub fn read(&self, count: usize, timeout_ms: i32) -> PyResult<Vec<Message>> {
        let functions = &self.library.functions;
        let mut messages: Vec<*mut RawMessage> = Vec::with_capacity(count);
        // SAFETY: the array has room for `count` pointers.
        let read = unsafe {
            (functions.consume_batch_queue)(
                self.raw.as_ptr(),
                timeout_ms,
                messages.as_mut_ptr(),
                count,
            )
        };
        let Ok(read) = usize::try_from(read) else {
            // SAFETY: has no arguments.
            let code = unsafe { (functions.last_error)() };
            return Err(PyRuntimeError::new_err(self.library.error_text(code)));
        };
        // SAFETY: librdkafka has written `read` pointers, at most `count`.
        unsafe { messages.set_len(read) };
        let wrap = |raw| Message {
            raw,
            library: self.library,
        };
        Ok(messages
            .into_iter()
            .filter_map(NonNull::new)
            .map(wrap)
            .collect())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the handle is ours and not used afterwards. This does not touch the client.
        unsafe { (self.library.functions.queue_destroy)(self.raw.as_ptr()) };
    }
}

/// One message or error event. It pins the buffer of the fetch that brought it, and its consumer's close waits for it.
pub struct Message {
    raw: NonNull<RawMessage>,
    library: &'static Library,
}

// SAFETY: librdkafka's messages may be read and destroyed in any thread; what changes one takes `&mut self`.
unsafe impl Send for Message {}
// SAFETY: the same.
unsafe impl Sync for Message {}

impl Message {
    fn raw(&self) -> &RawMessage {
        // SAFETY: the message is alive until `self` is dropped.
        unsafe { self.raw.as_ref() }
    }

    /// The code of an error event; 0: it is a message.
    pub fn error_code(&self) -> i32 {
        self.raw().err
    }

    /// The text of an error event.
    pub fn error_text(&self) -> String {
        match self.payload() {
            Some(text) => String::from_utf8_lossy(text).into_owned(),
            None => self.library.error_text(self.raw().err),
        }
    }

    /// The topic; empty for an error event of the whole client.
    pub fn topic(&self) -> String {
        match self.raw().rkt {
            topic if topic.is_null() => String::new(),
            // SAFETY: the message holds a reference to its topic.
            topic => unsafe { text((self.library.functions.topic_name)(topic)) },
        }
    }

    /// Whether both are of the same partition.
    pub fn shares_partition(&self, other: &Message) -> bool {
        (self.raw().rkt, self.raw().partition) == (other.raw().rkt, other.raw().partition)
    }

    /// The partition.
    pub fn partition(&self) -> i32 {
        self.raw().partition
    }

    /// The offset.
    pub fn offset(&self) -> i64 {
        self.raw().offset
    }

    /// The payload; None is a tombstone.
    pub fn payload(&self) -> Option<&[u8]> {
        // SAFETY: pointer and length are of one buffer that lives as long as the message.
        unsafe { bytes(self.raw().payload, self.raw().len) }
    }

    /// The key.
    pub fn key(&self) -> Option<&[u8]> {
        // SAFETY: pointer and length are of one buffer that lives as long as the message.
        unsafe { bytes(self.raw().key, self.raw().key_len) }
    }

    /// Type and time in ms, as `confluent_kafka.Message.timestamp()` returns them.
    pub fn timestamp(&self) -> (i32, i64) {
        let mut r#type = 0;
        // SAFETY: the message is alive; the call writes the type.
        let time =
            unsafe { (self.library.functions.message_timestamp)(self.raw.as_ptr(), &mut r#type) };
        (r#type, time)
    }

    /// The headers in their order. librdkafka parses them at the first call.
    pub fn headers(&mut self) -> Vec<Header> {
        let functions = &self.library.functions;
        let mut headers = ptr::null_mut();
        // SAFETY: the message is alive and not shared; it owns the headers.
        if unsafe { (functions.message_headers)(self.raw.as_ptr(), &mut headers) } != 0 {
            return Vec::new();
        }
        (0..)
            .map_while(|index| self.header(headers, index))
            .collect()
    }

    fn header(&self, headers: *const Headers, index: usize) -> Option<Header> {
        let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
        // SAFETY: `headers` are those of this message; the call writes all three if there is a header.
        unsafe {
            let code = (self.library.functions.header_get_all)(
                headers, index, &mut name, &mut value, &mut size,
            );
            (code == 0).then(|| (text(name), bytes(value, size).map(<[u8]>::to_vec)))
        }
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: the message is ours and not used afterwards.
        unsafe { (self.library.functions.message_destroy)(self.raw.as_ptr()) };
    }
}

/// SAFETY: the caller's pointer is NUL-terminated text that lives during the call.
unsafe fn text(pointer: *const c_char) -> String {
    // SAFETY: see above.
    unsafe { CStr::from_ptr(pointer) }
        .to_string_lossy()
        .into_owned()
}

/// SAFETY: the caller's pointer is null, or of `size` bytes that live for `'a`.
unsafe fn bytes<'a>(pointer: *const c_void, size: usize) -> Option<&'a [u8]> {
    // SAFETY: see above.
    (!pointer.is_null()).then(|| unsafe { slice::from_raw_parts(pointer.cast(), size) })
}
