//! Checkpoints that onnxruntime-training wrote: `../ort-1.19.2/make.py`.

use crate::common::parse;
use lorafa_ir::ops::Data;
use lorafa_weights::bind;
use lorafa_weights::shards::Shards;
use safetensors::Dtype;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

const MODULE: &str = "m.base_model.model.model.layers.0.self_attn.q_proj";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/ort-1.19.2")
        .join(name)
}

fn f32s(numbers: impl IntoIterator<Item = f32>) -> Vec<u8> {
    numbers.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// A tensor: name, type, shape, values, and whether it trains.
type Row<'a> = (&'a str, Dtype, &'a [u64], Vec<u8>, bool);

#[test]
fn every_tensor_has_its_name_type_shape_and_values() {
    let shards = Shards::open(fixture("checkpoint")).unwrap();
    let counted = |n: u8| (0..n).map(f32::from);
    let halves: Vec<u8> = (1..9)
        .flat_map(|n: u8| half::f16::from(n).to_le_bytes())
        .collect();
    let ids: Vec<u8> = [3i64, -1].iter().flat_map(|n| n.to_le_bytes()).collect();
    let a = format!("{MODULE}.lora_A.default.weight");
    let b = format!("{MODULE}.lora_B.default.weight");
    let base = format!("{MODULE}.base_layer.weight");
    let norm = "m.base_model.model.model.layers.0.input_layernorm.weight";
    let expected: [Row; 7] = [
        (norm, Dtype::F16, &[8], halves, false),
        (
            &base,
            Dtype::F32,
            &[8, 8],
            f32s(counted(64).map(|x| x / 2.0)),
            false,
        ),
        (&a, Dtype::F32, &[2, 8], f32s(counted(16)), true),
        (&b, Dtype::F32, &[8, 2], f32s(counted(16).map(|x| -x)), true),
        ("m.ids", Dtype::I64, &[2], ids, false),
        ("m.mask", Dtype::BOOL, &[1, 2], vec![1, 0], false),
        ("m.scalar", Dtype::F32, &[], f32s([0.5]), false),
    ];
    let found = shards.iter().map(|(name, t)| {
        let trained = t.requires_grad.unwrap();
        (name, t.dtype, &t.shape[..], t.bytes.to_vec(), trained)
    });
    assert_eq!(found.collect::<Vec<_>>(), expected);
}

#[test]
fn the_whole_adapted_model_is_bound() {
    let mut graph = parse(&format!(
        r#"graph @adapted {{
  param %x : f32[4,8] input
  param %{MODULE}.base_layer.weight : f32[8,8] frozen {{digest=0000000000000001}}
  param %{MODULE}.lora_A.default.weight : f32[2,8] trained {{digest=0000000000000002}}
  param %{MODULE}.lora_B.default.weight : f32[8,2] trained {{digest=0000000000000003}}
  v0 = matmul %x, %{MODULE}.base_layer.weight {{trans_b}} : f32[4,8]
  v1 = matmul %x, %{MODULE}.lora_A.default.weight {{trans_b}} : f32[4,2]
  v2 = matmul v1, %{MODULE}.lora_B.default.weight {{trans_b}} : f32[4,8]
  v3 = add v0, v2 : f32[4,8]
  out "y" = v3
}}"#
    ));
    let bound = bind(&mut graph, &Shards::open(fixture("checkpoint")).unwrap()).unwrap();
    assert_eq!((bound.weights, bound.unused.len()), (3, 4));
    let last: Vec<f32> = graph
        .params()
        .filter_map(|(_, p)| match &p.stored.data {
            Data::Inline(bytes) => Some(f32::from_le_bytes(*bytes.last_chunk().unwrap())),
            _ => None,
        })
        .collect();
    assert_eq!(last, [31.5, 15.0, -15.0]);
}

/// Nothing but `m.a`, which comes first, is not zero: the file is made as long as it was, and takes no room.
#[test]
fn values_of_large_models_are_in_the_file_beside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint");
    fs::copy(fixture("external"), &path).unwrap();
    let text = Shards::open(&path).unwrap_err().to_string();
    assert!(
        text.ends_with("checkpoint.data: there is no such file or folder"),
        "{text}"
    );
    let numbers = f32s((0..64u8).map(f32::from));
    let mut data = File::create(dir.path().join("checkpoint.data")).unwrap();
    data.write_all(&numbers).unwrap();
    let (large, whole) = ((1 << 30), (1 << 31) + 256);
    data.set_len(whole).unwrap();
    let shards = Shards::open(&path).unwrap();
    assert_eq!(shards.get("m.a").unwrap().bytes, numbers);
    assert_eq!(shards.get("m.b").unwrap().bytes, f32s([0.0, 1.0, 2.0, 3.0]));
    let v = shards.get("m.v").unwrap();
    assert_eq!(
        (&v.shape[..], v.bytes.len()),
        (&[1 << 14, 1 << 14][..], large)
    );
    drop(shards);
    data.set_len(whole - 1).unwrap();
    let text = Shards::open(&path).unwrap_err().to_string();
    assert!(
        text.contains("checkpoint.data: ") && text.contains("cut off"),
        "{text}"
    );
}

/// Reads every byte of every tensor, which a slice beyond the file would not survive.
fn read_all(path: &Path) -> Result<usize, String> {
    let shards = Shards::open(path).map_err(|e| e.to_string())?;
    Ok(shards.iter().map(|(_, t)| t.bytes.to_vec().len()).sum())
}

#[test]
fn damaged_files_are_errors_or_other_checkpoints_and_never_panics() {
    let whole = fs::read(fixture("checkpoint")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint");
    for end in 0..whole.len() {
        fs::write(&path, &whole[..end]).unwrap();
        match read_all(&path) {
            Err(text) => assert!(text.contains("checkpoint: not a whole"), "{end}: {text}"),
            // What is cut off fills the last word.
            Ok(bytes) => assert!(bytes == 422 && end + 4 > whole.len(), "{end}: {bytes}"),
        }
    }
    let mut refused = 0;
    for at in 0..whole.len() {
        for flip in [0x04, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            fs::write(&path, &bytes).unwrap();
            refused += usize::from(read_all(&path).is_err());
        }
    }
    assert!(refused > whole.len() / 2, "{refused}");
}

#[test]
fn what_is_wrong_is_said() {
    let whole = fs::read(fixture("checkpoint")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint");
    let at = |needle: &[u8]| whole.windows(needle.len()).position(|w| w == needle);
    // The length before the values of `ids`, and the first dimension of A.
    let ids: Vec<u8> = [3i64, -1].iter().flat_map(|n| n.to_le_bytes()).collect();
    let dims: Vec<u8> = [2i64, 8].iter().flat_map(|n| n.to_le_bytes()).collect();
    let (ids, dims) = (at(&ids).unwrap() - 4, at(&dims).unwrap());
    let cases: [(usize, u8, &str); 4] = [
        (ids, 15, "\"m.ids\" has 15 bytes in place of 16"),
        (dims, 3, "has 64 bytes in place of 96"),
        (dims + 7, 0xff, "has a shape that no tensor has"),
        (dims + 7, 0x7f, "has a shape that no tensor has"),
    ];
    for (at, byte, what) in cases {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        fs::write(&path, &bytes).unwrap();
        let text = read_all(&path).unwrap_err();
        assert!(text.contains(what), "{text}");
    }
}
