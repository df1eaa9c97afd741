use pyo3::prelude::*;

#[pymodule]
fn worker_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))
}
