//! Pre-tokenized files.

use std::path::PathBuf;

use crate::common::{Files, row, spec};
use lorafa_data::{Dataset, InputSpec, Options, Place, Spec, Task};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

type Tensor<'a> = (&'a str, Dtype, Vec<usize>, Vec<u8>);

fn int64<'a>(name: &'a str, shape: [usize; 2], values: &[i64]) -> Tensor<'a> {
    let bytes = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    (name, Dtype::I64, shape.to_vec(), bytes)
}

fn write(files: &Files, tensors: &[Tensor]) -> PathBuf {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        let view = TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor");
        (*name, view)
    });
    files.write(
        "data.safetensors",
        safetensors::serialize(views, None).expect("a file"),
    )
}

fn load(tensors: &[Tensor], spec: &Spec) -> Result<Dataset, String> {
    let files = Files::new();
    let path = write(&files, tensors);
    let loaded = Dataset::load(&[path], spec, None, &Options::default());
    loaded.map_err(|error| {
        error
            .to_string()
            .replace(&format!("{}/", files.path().display()), "")
    })
}

#[test]
fn rows_are_read_from_tensors_of_any_integer_type() {
    let spec = spec(
        Task::CausalLm,
        &["input_ids", "attention_mask", "labels"],
        2,
        4,
        0,
    );
    let ids = int64("input_ids", [2, 3], &[1, 2, 3, 4, 5, 0]);
    let mask = (
        "attention_mask",
        Dtype::BOOL,
        vec![2, 3],
        vec![1, 1, 1, 1, 1, 0],
    );
    let data = load(&[ids, mask.clone()], &spec).expect("rows");
    let batch = data.batch(&[0, 1]).expect("a batch");
    assert_eq!(batch.inputs["input_ids"], [1, 2, 3, 0, 4, 5, 0, 0]);
    assert_eq!(batch.inputs["labels"], [1, 2, 3, -100, 4, 5, -100, -100]);
    let small = ("input_ids", Dtype::U8, vec![2, 3], vec![1, 2, 3, 4, 5, 0]);
    let bytes = [-100_i32, 2, 3, 4, -100, -100]
        .iter()
        .flat_map(|value| value.to_le_bytes());
    let labels = ("labels", Dtype::I32, vec![2, 3], bytes.collect());
    let data = load(&[small, mask, labels], &spec).expect("rows");
    // The second row has no label that trains after the shift.
    assert_eq!(data.len(), 1);
    assert_eq!(
        row(&data, 0, "labels"),
        [-100, 2, 3, -100, -100, -100, -100, -100]
    );
}

#[test]
fn classes_and_targets() {
    let ids = || int64("input_ids", [2, 2], &[1, 2, 3, 4]);
    let classes = spec(Task::SeqCls, &["input_ids", "labels"], 2, 2, 0);
    let labels = ("labels", Dtype::U8, vec![2], vec![1, 0]);
    let data = load(&[ids(), labels], &classes).expect("rows");
    assert_eq!(
        data.batch(&[0, 1]).expect("a batch").inputs["labels"],
        [1, 0]
    );
    let seq2seq = spec(
        Task::Seq2Seq,
        &["input_ids", "labels", "decoder_input_ids"],
        1,
        2,
        4,
    );
    let labels = int64("labels", [2, 3], &[7, 8, -100, 9, 9, 9]);
    let data = load(&[ids(), labels], &seq2seq).expect("rows");
    assert_eq!(row(&data, 0, "labels"), [7, 8, -100, -100]);
    assert_eq!(row(&data, 0, "decoder_input_ids"), [0, 7, 8, 0]);
}

#[test]
fn inputs_of_other_names_are_passed_on() {
    let mut spec = spec(Task::CausalLm, &["input_ids", "labels"], 2, 2, 0);
    spec.inputs.push(InputSpec {
        name: "bbox".to_owned(),
        shape: vec![2, 2, 2],
    });
    let ids = || int64("input_ids", [2, 2], &[1, 2, 3, 4]);
    let bbox = (
        "bbox",
        Dtype::I8,
        vec![2, 2, 2],
        vec![1, 2, 3, 4, 5, 6, 7, 255],
    );
    let data = load(&[ids(), bbox.clone()], &spec).expect("rows");
    assert_eq!(
        data.batch(&[1]).expect("a batch").inputs["bbox"],
        [5, 6, 7, -1, 5, 6, 7, -1]
    );
    assert_eq!(
        load(&[ids()], &spec).expect_err("no bbox"),
        "data.safetensors: expected a tensor `bbox`, found `input_ids`"
    );
    let flat = ("bbox", Dtype::I8, vec![2, 4], vec![0; 8]);
    assert_eq!(
        load(&[ids(), flat], &spec).expect_err("a flat bbox"),
        "data.safetensors: tensor `bbox` is [2, 4]; expected [2, 2] like a row of the step's input, for each of 2 rows"
    );
    let mask = int64("attention_mask", [2, 2], &[0, 1, 1, 1]);
    assert_eq!(
        load(&[ids(), bbox.clone(), mask], &spec).expect_err("padding on the left"),
        "data.safetensors, row 0: the row is padded on the left, and `bbox` is used as it is; pad on the right"
    );
    let files = Files::new();
    let path = write(&files, &[ids(), bbox]);
    let options = Options {
        pack: true,
        ..Options::default()
    };
    let error = Dataset::load(&[path], &spec, None, &options).expect_err("no packing");
    assert!(
        error
            .to_string()
            .starts_with("tensor `bbox` cannot be packed"),
        "{error}"
    );
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let mut spec = spec(
        Task::CausalLm,
        &["input_ids", "position_ids", "labels"],
        1,
        2,
        0,
    );
    spec.vocab = Some(4);
    let ids = || int64("input_ids", [2, 2], &[1, 2, 3, 3]);
    let refused = |tensors: &[Tensor]| load(tensors, &spec).expect_err("a bad file");
    assert_eq!(
        refused(&[int64("ids", [1, 1], &[1])]),
        "data.safetensors: expected a tensor `input_ids`, found `ids`"
    );
    assert_eq!(
        refused(&[("input_ids", Dtype::F32, vec![1, 1], vec![0; 4])]),
        "data.safetensors: tensor `input_ids` is F32; expected integers (or BOOL for a mask)"
    );
    assert_eq!(
        refused(&[("input_ids", Dtype::U8, vec![2], vec![0; 2])]),
        "data.safetensors: tensor `input_ids` is [2]; expected [rows, length]"
    );
    assert_eq!(
        refused(&[ids(), int64("labels", [1, 2], &[1, 2])]),
        "data.safetensors: tensor `labels` is [1, 2]; expected [2, 2] like `input_ids`"
    );
    assert_eq!(
        refused(&[int64("input_ids", [2, 2], &[1, 2, 3, 4])]),
        "data.safetensors, row 1: token id 4 is out of range: the model's vocabulary has 4 entries"
    );
    assert_eq!(
        refused(&[("input_ids", Dtype::U64, vec![1, 1], vec![255; 8])]),
        "data.safetensors, row 0: token id -1 is out of range: the model's vocabulary has 4 entries"
    );
    assert_eq!(
        refused(&[ids(), int64("position_ids", [2, 2], &[0, 1, 0, 1])]),
        "data.safetensors: tensor `position_ids` is not read, because that input is made from the others; remove it from the file"
    );
    assert_eq!(
        refused(&[("input_ids", Dtype::U8, vec![0, 1 << 60], vec![])]),
        "data.safetensors: the file is empty"
    );
}

#[test]
fn bad_rows_may_be_skipped() {
    let files = Files::new();
    let mut spec = spec(Task::CausalLm, &["input_ids", "labels"], 1, 2, 0);
    spec.vocab = Some(4);
    let path = write(&files, &[int64("input_ids", [3, 2], &[1, 2, 9, 1, 3, 3])]);
    let options = Options {
        skip_bad: true,
        ..Options::default()
    };
    let data = Dataset::load(&[path], &spec, None, &options).expect("rows");
    let summary = data.summary();
    assert_eq!(
        (data.len(), summary.skipped, summary.skipped_at[0].place),
        (2, 1, Place::Row(1))
    );
}

#[test]
fn damaged_files_are_refused() {
    let files = Files::new();
    let spec = spec(Task::CausalLm, &["input_ids", "labels"], 1, 2, 0);
    let whole =
        std::fs::read(write(&files, &[int64("input_ids", [2, 2], &[1, 2, 3, 3])])).expect("a file");
    for length in 0..whole.len() {
        let path = files.write("data.safetensors", &whole[..length]);
        let error = Dataset::load(&[path], &spec, None, &Options::default())
            .expect_err("a cut file")
            .to_string();
        assert!(
            error.contains("not a whole safetensors file") || length == 0,
            "{length}: {error}"
        );
    }
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let path = files.write("data.safetensors", bytes);
        // An error or other rows, but no panic.
        drop(Dataset::load(&[path], &spec, None, &Options::default()));
    }
}
