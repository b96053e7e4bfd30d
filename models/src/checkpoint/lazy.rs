//! Tensors that are read when burn-store asks for them: how checkpoints are written without being held in memory.

use std::sync::{Arc, Mutex};

use burn::store::bridge::deferred;
use burn::store::burn_pack::{Error as PackError, Tensor as PackTensor};
use burn::tensor::{Bytes, DType, Shape, TensorData};

use super::quantized::{is_packed, packed_dtype};
use super::source::TensorSource;
use crate::error::Error;

/// Carries an error out of burn-store, which would turn it into text.
#[derive(Clone, Default)]
pub(crate) struct ErrorSlot(Arc<Mutex<Option<Error>>>);

impl ErrorSlot {
    pub(crate) fn put(&self, error: Error) -> PackError {
        let text = error.to_string();
        *self.0.lock().unwrap_or_else(|e| e.into_inner()) = Some(error);
        PackError::ValidationError(text)
    }

    pub(crate) fn take(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).take()
    }
}

/// A tensor that is read when burn-store asks for it: as f32, or as it is stored where it belongs to codes. `name` is its path
/// in the module.
pub(crate) fn lazy(
    source: &Arc<dyn TensorSource>,
    stored_name: &str,
    name: String,
    slot: &ErrorSlot,
) -> PackTensor {
    let shape = source
        .info(stored_name)
        .map(|i| i.shape)
        .unwrap_or_default();
    let (source, slot) = (source.clone(), slot.clone());
    let (stored_name, dims) = (stored_name.to_owned(), shape.clone());
    if is_packed(&stored_name) {
        let dtype = packed_dtype(&stored_name);
        return deferred(name, dtype, Shape::from(shape), None, move || {
            let bytes = source.read_bytes(&stored_name).map_err(|e| slot.put(e))?;
            let bytes = Bytes::from_bytes_vec(bytes);
            Ok(TensorData::from_bytes(bytes, dims.clone(), dtype))
        });
    }
    deferred(name, DType::F32, Shape::from(shape), None, move || {
        let values = source.read_f32(&stored_name).map_err(|e| slot.put(e))?;
        Ok(TensorData::new(values, dims.clone()))
    })
}
