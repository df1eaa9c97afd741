//! The decoder as Python sees it; see worker_native.pyi.

use std::borrow::Cow;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use crate::columns::Part;
use crate::decode::{Decoder, FieldPlan, Run};
use crate::kafka::Message;
use crate::messages::Messages;
use crate::pfadd;
use crate::targets::Target;
use crate::values::push_string;

type PythonRun<'py> = (usize, usize, Bound<'py, PyTuple>);

/// The payloads of a record batch.
#[derive(FromPyObject)]
enum Payloads<'py> {
    Messages(Bound<'py, Messages>),
    Bytes(Vec<Bound<'py, PyBytes>>),
}

#[pyclass(name = "Decoder", module = "worker_native")]
pub struct PythonDecoder(pub Decoder);

#[pymethods]
impl PythonDecoder {
    #[new]
    fn new(fields: Vec<(Vec<String>, String, bool)>) -> PyResult<Self> {
        let plans = fields.into_iter().map(|(path, target, required)| {
            let target = Target::parse(&target).ok_or_else(|| {
                PyValueError::new_err(format!("target {target:?} is not supported"))
            })?;
            Ok(FieldPlan {
                path,
                target,
                required,
            })
        });
        let decoder = Decoder::new(plans.collect::<PyResult<_>>()?);
        decoder
            .map(Self)
            .ok_or_else(|| PyValueError::new_err("a path has no keys"))
    }

    fn decode<'py>(
        &mut self,
        py: Python<'py>,
        payloads: Payloads<'py>,
    ) -> PyResult<(Vec<PythonRun<'py>>, Vec<usize>)> {
        let outcome = match payloads {
            Payloads::Messages(messages) => {
                let messages = messages.get();
                // A tombstone becomes an empty payload, which is undecided.
                let payloads = |messages: &[Message]| {
                    self.0.decode_all(
                        messages
                            .iter()
                            .map(|message| message.payload().unwrap_or_default()),
                    )
                };
                py.detach(|| messages.with_messages(payloads))?
            }
            Payloads::Bytes(payloads) => {
                // They are immutable, and `payloads` keeps them alive while other threads run.
                let slices: Vec<&[u8]> =
                    payloads.iter().map(|payload| payload.as_bytes()).collect();
                py.detach(|| self.0.decode_all(slices))
            }
        };
        let runs: PyResult<_> = outcome.runs.iter().map(|run| python_run(py, run)).collect();
        Ok((runs?, outcome.undecided))
    }
}

/// A run as a tuple: bytes for each field, or (mask, values) for a Nullable.
pub fn python_run<'py>(py: Python<'py>, run: &Run) -> PyResult<PythonRun<'py>> {
    let parts: PyResult<Vec<Bound<'py, PyAny>>> =
        run.parts.iter().map(|part| python_part(py, part)).collect();
    Ok((run.start, run.stop, PyTuple::new(py, parts?)?))
}

fn python_part<'py>(py: Python<'py>, part: &Part) -> PyResult<Bound<'py, PyAny>> {
    let python_parts = |parts: &[Part]| -> PyResult<Vec<Bound<'py, PyAny>>> {
        parts.iter().map(|part| python_part(py, part)).collect()
    };
    match part {
        Part::Bytes(bytes) => Ok(PyBytes::new(py, bytes).into_any()),
        Part::Nullable { mask, values } => {
            let pair = (PyBytes::new(py, mask), PyBytes::new(py, values));
            Ok(pair.into_pyobject(py)?.into_any())
        }
        Part::Collection { sizes, columns } => {
            let array = py.import("array")?.getattr("array")?;
            let mut parts = vec![array.call1(("Q", PyBytes::new(py, sizes)))?];
            parts.extend(python_parts(columns)?);
            Ok(PyTuple::new(py, parts)?.into_any())
        }
        Part::Tuple(parts) => Ok(PyTuple::new(py, python_parts(parts)?)?.into_any()),
    }
}

/// Whether a Decoder can have a field with this target.
#[pyfunction]
pub fn supports(target: &str) -> bool {
    Target::parse(target).is_some()
}

/// The devices of a record batch, from this module or from the Python reference.
#[derive(FromPyObject)]
pub enum Devices<'py> {
    Packed(Bound<'py, PyBytes>),
    Texts(Vec<String>),
}

impl Devices<'_> {
    /// The strings, each after its length.
    fn packed(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Packed(bytes) => bytes.as_bytes().into(),
            Self::Texts(texts) => {
                let mut out = Vec::new();
                texts
                    .iter()
                    .for_each(|text| push_string(&mut out, text.as_bytes()));
                out.into()
            }
        }
    }
}

/// PFADD commands in RESP that add the distinct devices of all parts, at most `elements` in each.
#[pyfunction]
pub fn pfadd_commands<'py>(
    py: Python<'py>,
    key: Bound<'py, PyBytes>,
    parts: Vec<Devices<'py>>,
    elements: usize,
) -> PyResult<Vec<Bound<'py, PyBytes>>> {
    if elements == 0 {
        return Err(PyValueError::new_err("elements must be at least 1"));
    }
    let packed: Vec<Cow<[u8]>> = parts.iter().map(Devices::packed).collect();
    let key = key.as_bytes();
    let commands = py.detach(|| pfadd::commands(key, &packed, elements));
    let commands =
        commands.ok_or_else(|| PyValueError::new_err("a part is not made of strings"))?;
    Ok(commands
        .iter()
        .map(|command| PyBytes::new(py, command))
        .collect())
}
