#![deny(unsafe_code)]

use pyo3::prelude::*;

#[allow(unsafe_code)]
mod kafka;
mod messages;
mod reader;

#[pymodule]
fn worker_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<messages::Messages>()?;
    module.add_class::<reader::Reader>()
}
