//! The optional native part of kafka-ingest-worker. Its Python reference is `worker.decoding`.

#![deny(unsafe_code)]

use pyo3::prelude::*;

pub mod collections;
pub mod columns;
pub mod decimals;
pub mod decode;
pub mod dictionaries;
pub mod json;
#[allow(unsafe_code)]
mod kafka;
mod messages;
pub mod paths;
pub mod pfadd;
mod python;
mod reader;
pub mod targets;
pub mod timestamps;
pub mod values;

#[pymodule]
fn worker_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<messages::Messages>()?;
    module.add_class::<reader::Reader>()?;
    module.add_class::<python::PythonDecoder>()?;
    module.add_function(wrap_pyfunction!(python::supports, module)?)?;
    module.add_function(wrap_pyfunction!(python::pfadd_commands, module)?)
}
