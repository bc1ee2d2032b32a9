//! Checks of a `tokenizer.json` that the crate `tokenizers` leaves out: on such files it panics.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::TokenizerError;

/// The file without its decoder, which nothing here needs and whose parser panics on what it does not know. It is JSON, and
/// its post-processor has every special token that its templates name.
pub(super) fn checked(file: &[u8]) -> Result<Vec<u8>, TokenizerError> {
    let refuse = |error: serde_json::Error| TokenizerError::Tokenizer(error.to_string());
    let mut parts: BTreeMap<String, &RawValue> = serde_json::from_slice(file).map_err(refuse)?;
    parts.remove("decoder");
    if let Some(processor) = parts.get("post_processor") {
        check_processor(&serde_json::from_str(processor.get()).map_err(refuse)?)?;
    }
    serde_json::to_vec(&parts).map_err(refuse)
}

fn check_processor(processor: &Value) -> Result<(), TokenizerError> {
    if let Some(Value::Array(processors)) = processor.get("processors") {
        processors.iter().try_for_each(check_processor)?;
    }
    let known = processor.get("special_tokens");
    let templates = ["single", "pair"]
        .into_iter()
        .filter_map(|key| processor.get(key)?.as_array());
    for piece in templates.flatten() {
        let Some(id) = piece
            .get("SpecialToken")
            .and_then(|token| token.get("id")?.as_str())
        else {
            continue;
        };
        if known.and_then(|known| known.get(id)).is_none() {
            let message =
                format!("its post-processor names the special token `{id}` and does not define it");
            return Err(TokenizerError::Tokenizer(message));
        }
    }
    Ok(())
}
