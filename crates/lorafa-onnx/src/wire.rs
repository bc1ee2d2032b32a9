//! What a file that does not decode as a model is: cut short, damaged, or something else altogether.
//!
//! prost says that the bytes are wrong, not why. This walks only the outermost level of the protobuf, where every field
//! says how long it is, and knows the first bytes of what is often mistaken for a model.

/// The verdict on bytes that are not a usable model.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A model whose last field is longer than what is left of the file.
    Truncated {
        /// Name of the `ModelProto` field the file ends inside.
        field: &'static str,
    },
    /// Some other kind of file.
    Foreign {
        /// What it looks like and what to do, if the first bytes say.
        hint: &'static str,
    },
    /// Begins as a model and is whole at the outermost level: the damage, if any, is deeper.
    Model,
}

/// Files people pass instead of a model: first bytes, and what to say.
const SIGNATURES: &[(&[u8], &str)] = &[
    (
        b"version https://git-lfs",
        "it is a git-lfs pointer; run `git lfs pull` to get the file it stands for",
    ),
    (
        b"PK\x03\x04",
        "it is a zip archive, perhaps a PyTorch checkpoint; export the model with torch.onnx.export",
    ),
    (
        b"\x80",
        "it is a Python pickle; export the model with torch.onnx.export",
    ),
    (b"\x1f\x8b", "it is gzip-compressed; decompress it first"),
    (b"GGUF", "it is a GGUF file; give the ONNX export"),
    (
        b"ORTM",
        "it is an ORT-format model; give the .onnx file it was made from",
    ),
    (
        b"<",
        "it is an HTML or XML document, perhaps a failed download",
    ),
    (b"{", "it is JSON; give the .onnx file"),
];

/// A safetensors file: eight bytes of header length, then a JSON object.
const SAFETENSORS_BRACE_AT: usize = 8;

/// Every serializer writes fields in order, so a model begins with field 1 (`ir_version`) as a varint. The byte is
/// a control character, which no text begins with.
const IR_VERSION_KEY: u8 = 0x08;

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED32: u64 = 5;

/// Says what `bytes` are, when they are not a usable model.
pub(crate) fn diagnose(bytes: &[u8]) -> Verdict {
    for (magic, hint) in SIGNATURES {
        if bytes.starts_with(magic) {
            return Verdict::Foreign { hint };
        }
    }
    if bytes.get(SAFETENSORS_BRACE_AT) == Some(&b'{') && bytes.get(6..8) == Some(&[0, 0]) {
        return Verdict::Foreign {
            hint: "it is a safetensors file; give the ONNX export of the model",
        };
    }
    if bytes.first() != Some(&IR_VERSION_KEY) {
        return Verdict::Foreign {
            hint: "it does not begin as an ONNX protobuf does",
        };
    }
    walk(bytes)
}

fn walk(bytes: &[u8]) -> Verdict {
    let mut rest = bytes;
    while !rest.is_empty() {
        let Ok(key) = varint(&mut rest) else {
            return Verdict::Truncated {
                field: "a field's header",
            };
        };
        let field = field_name(key >> 3);
        let length = match key & 7 {
            VARINT => match varint(&mut rest) {
                Ok(_) => Some(0),
                Err(Varint::Unfinished) => None,
                Err(Varint::TooLong) => return Verdict::Model,
            },
            FIXED64 => Some(8),
            LENGTH_DELIMITED => varint(&mut rest).ok(),
            FIXED32 => Some(4),
            // A group or no wire type at all: the schema has neither, so this is damage, not the end of the file.
            _ => return Verdict::Model,
        };
        let length = length.and_then(|length| usize::try_from(length).ok());
        match length.and_then(|length| rest.get(length..)) {
            Some(after) => rest = after,
            None => return Verdict::Truncated { field },
        }
    }
    Verdict::Model
}

enum Varint {
    Unfinished,
    TooLong,
}

/// Takes one varint off the front.
fn varint(rest: &mut &[u8]) -> Result<u64, Varint> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let Some((&byte, after)) = rest.split_first() else {
            return Err(Varint::Unfinished);
        };
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Varint::TooLong)
}

/// Name of a `ModelProto` field, as the schema numbers them.
fn field_name(number: u64) -> &'static str {
    match number {
        1 => "ir_version",
        2 => "producer_name",
        3 => "producer_version",
        4 => "domain",
        5 => "model_version",
        6 => "doc_string",
        7 => "graph",
        8 => "opset_import",
        14 => "metadata_props",
        20 => "training_info",
        25 => "functions",
        26 => "configuration",
        _ => "an unknown field",
    }
}
