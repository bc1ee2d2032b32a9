//! Payloads that disagree with their own shape and type.

use bytes::Bytes;
use lorafa_onnx::proto::TensorProto;
use lorafa_onnx::proto::tensor_proto::{DataType, Segment};
use lorafa_onnx::tensor::{self, TensorError as E, TensorPayload};

use crate::samples;

fn of(data_type: DataType, dims: &[i64], fill: impl Fn(&mut TensorProto)) -> Result<Bytes, E> {
    let mut tensor = samples::tensor(data_type as i32, dims);
    fill(&mut tensor);
    match tensor::payload(&tensor)? {
        TensorPayload::Inline(bytes) => Ok(bytes),
        TensorPayload::External(_) => panic!("it is inline"),
    }
}

#[test]
fn the_count_must_match_the_shape() {
    for found in [0usize, 1, 3, 5] {
        let floats = of(DataType::Float, &[2, 2], |t| {
            t.float_data = vec![0.0; found]
        });
        assert!(matches!(floats, Err(E::Count { expected: 4, .. })));
        let bools = of(DataType::Bool, &[2, 2], |t| t.int32_data = vec![0; found]);
        assert!(matches!(bools, Err(E::Count { expected: 4, .. })));
        let raw = of(DataType::Int64, &[2, 2], |t| {
            t.raw_data = Some(vec![0; found].into())
        });
        assert!(matches!(
            raw,
            Err(E::RawLength { expected: 32, .. } | E::Count { .. })
        ));
    }
    assert_eq!(
        of(DataType::Float, &[0, 7], |_| {}).expect("nothing needed"),
        ""
    );
    assert_eq!(
        of(DataType::Uint8, &[], |t| t.int32_data = vec![7]).expect("a scalar"),
        "\x07"
    );
}

#[test]
fn elements_belong_in_their_field() {
    let wrong = of(DataType::Float, &[1], |t| t.int32_data = vec![0]);
    assert!(matches!(
        wrong,
        Err(E::WrongField {
            expected: "float_data",
            found: "int32_data",
            ..
        })
    ));
    let wrong = of(DataType::Int32, &[1], |t| t.int64_data = vec![0]);
    assert!(matches!(
        wrong,
        Err(E::WrongField {
            expected: "int32_data",
            ..
        })
    ));
    let two = of(DataType::Float, &[1], |t| {
        t.float_data = vec![0.0];
        t.raw_data = Some(vec![0; 4].into());
    });
    assert!(matches!(two, Err(E::TwoPayloads { .. })));
    // Some writers leave an empty raw_data next to the field they use.
    let fine = of(DataType::Float, &[1], |t| {
        t.float_data = vec![1.0];
        t.raw_data = Some(Bytes::new());
    });
    assert_eq!(
        fine.expect("one field holds elements"),
        &1f32.to_le_bytes()[..]
    );
}

#[test]
fn every_typed_field_becomes_little_endian_bytes() {
    let ints = |data_type, value| of(data_type, &[1], |t| t.int32_data = vec![value]);
    assert_eq!(ints(DataType::Int8, -2).expect("fits"), &[0xfe][..]);
    assert_eq!(ints(DataType::Uint8, 255).expect("fits"), &[0xff][..]);
    assert_eq!(ints(DataType::Int16, -2).expect("fits"), &[0xfe, 0xff][..]);
    assert_eq!(
        ints(DataType::Uint16, 0x1234).expect("fits"),
        &[0x34, 0x12][..]
    );
    assert_eq!(
        ints(DataType::Float16, 0x3c00).expect("fits"),
        &[0x00, 0x3c][..]
    );
    assert_eq!(
        ints(DataType::Bfloat16, 0xbf80).expect("fits"),
        &[0x80, 0xbf][..]
    );
    assert_eq!(ints(DataType::Bool, 1).expect("fits"), &[1][..]);
    assert_eq!(
        ints(DataType::Int32, -2).expect("fits"),
        &(-2i32).to_le_bytes()[..]
    );
    let longs = of(DataType::Int64, &[1], |t| t.int64_data = vec![-2]);
    assert_eq!(longs.expect("fits"), &(-2i64).to_le_bytes()[..]);
    let doubles = of(DataType::Double, &[1], |t| t.double_data = vec![0.5]);
    assert_eq!(doubles.expect("fits"), &0.5f64.to_le_bytes()[..]);
    let words = of(DataType::Uint32, &[1], |t| t.uint64_data = vec![7]);
    assert_eq!(words.expect("fits"), &7u32.to_le_bytes()[..]);
    let words = of(DataType::Uint64, &[1], |t| t.uint64_data = vec![u64::MAX]);
    assert_eq!(words.expect("fits"), &[0xff; 8][..]);
}

#[test]
fn values_must_fit_their_type() {
    use DataType as D;
    let cases = [
        (D::Int8, 128),
        (D::Int8, -129),
        (D::Uint8, 256),
        (D::Uint8, -1),
        (D::Int16, 32_768),
        (D::Uint16, 65_536),
        (D::Float16, -1),
        (D::Bfloat16, 65_536),
        (D::Bool, 2),
        (D::Bool, -1),
    ];
    for (data_type, value) in cases {
        let error = of(data_type, &[2], |t| t.int32_data = vec![0, value]).expect_err("too large");
        assert!(matches!(error, E::OutOfRange { index: 1, .. }), "{error}");
    }
    let wide = of(D::Uint32, &[1], |t| t.uint64_data = vec![1 << 32]);
    assert!(matches!(wide, Err(E::OutOfRange { .. })));
}

#[test]
fn shapes_are_checked_before_anything_is_counted() {
    let shape = |dims| of(DataType::Float, dims, |_| {});
    assert!(matches!(
        shape(&[2, -1]),
        Err(E::NegativeDim { dim: -1, .. })
    ));
    assert!(matches!(shape(&[0, -1]), Err(E::NegativeDim { .. })));
    assert!(matches!(shape(&[1 << 62, 8]), Err(E::TooLarge { .. })));
    assert!(matches!(shape(&[1 << 62]), Err(E::TooLarge { .. })));
    assert_eq!(shape(&[1 << 62, 8, 0]).expect("empty all the same"), "");
}

#[test]
fn other_types_are_refused_by_name() {
    for (data_type, name) in [
        (8, "STRING"),
        (14, "COMPLEX64"),
        (22, "INT4"),
        (0, "UNDEFINED"),
    ] {
        let tensor = samples::tensor(data_type, &[1]);
        let error = tensor::payload(&tensor)
            .expect_err("not carried")
            .to_string();
        assert!(
            error.starts_with(&format!("tensor `w` is of type {name};")),
            "{error}"
        );
    }
    let error = tensor::payload(&samples::tensor(999, &[1])).expect_err("no such type");
    assert!(error.to_string().contains("of type number 999"), "{error}");
    let segment = of(DataType::Float, &[1], |t| {
        t.segment = Some(Segment::default())
    });
    assert!(matches!(segment, Err(E::Segmented { .. })));
    let elsewhere = of(DataType::Float, &[1], |t| t.data_location = Some(7));
    assert!(matches!(
        elsewhere,
        Err(E::UnknownLocation { value: 7, .. })
    ));
}

#[test]
fn encoding_checks_the_same_things() {
    let raw = Bytes::from_static(&[1, 2, 3, 4]);
    let inline = |dims: &[i64], raw: &Bytes| {
        tensor::encode(
            "w",
            DataType::Float as i32,
            dims,
            TensorPayload::Inline(raw.clone()),
        )
    };
    let tensor = inline(&[1], &raw).expect("4 bytes are one f32");
    assert_eq!(
        tensor::payload(&tensor).expect("whole"),
        TensorPayload::Inline(raw.clone())
    );
    assert!(matches!(inline(&[2], &raw), Err(E::RawLength { .. })));
    assert!(matches!(inline(&[-1], &raw), Err(E::NegativeDim { .. })));
    let empty = inline(&[0], &Bytes::new()).expect("nothing is fine");
    assert_eq!(
        tensor::payload(&empty).expect("whole"),
        TensorPayload::Inline(Bytes::new())
    );
}
