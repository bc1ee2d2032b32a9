//! Pre-tokenized safetensors files: integer tensors by the names of the inputs, read row by row.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::error::{DataError, DataErrorKind, FileError, Place};
use crate::example::{Builder, Example};
use crate::form::{Ids, Record};
use crate::spec::{Layout, Task};

/// Header bytes that the format allows.
const LARGEST_HEADER: u64 = 100_000_000;

/// Hands every row's example, or what is wrong with it, to `take`, in order.
pub(crate) fn read(
    path: &Path,
    builder: &Builder,
    take: &mut impl FnMut(Place, Result<Example, DataErrorKind>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let refuse = |error| DataError::of_file(path, error);
    let layout = builder.layout;
    let header = Header::read(path).map_err(refuse)?;
    let ids = header.tensor("input_ids").map_err(refuse)?;
    let [rows, length] = ids.shape[..] else {
        return Err(refuse(shape("input_ids", ids, "[rows, length]")));
    };
    if rows == 0 {
        return Err(refuse(FileError::Empty));
    }
    header.refuse_made(layout).map_err(refuse)?;
    let open = |name: &'static str| header.open_aligned(path, name, rows, length);
    let mut ids = header.open(path, "input_ids").map_err(refuse)?;
    let mut mask = open("attention_mask").map_err(refuse)?;
    let mut types = open("token_type_ids").map_err(refuse)?;
    let mut labels = header
        .open_labels(path, layout.task, rows, length)
        .map_err(refuse)?;
    let mut fixed = Vec::new();
    for (name, row) in &layout.fixed {
        let info = header.tensor(name).map_err(refuse)?;
        if info.shape.first() != Some(&rows) || info.shape[1..] != row[..] {
            let expected = format!(
                "{:?} like a row of the step's input, for each of {rows} rows",
                row
            );
            return Err(refuse(shape(name, info, &expected)));
        }
        fixed.push(header.open(path, name).map_err(refuse)?);
    }
    for row in 0..rows {
        let mut next =
            |column: &mut Column| column.next().map_err(|error| refuse(FileError::Io(error)));
        let mut optional = |column: &mut Option<Column>| column.as_mut().map(&mut next).transpose();
        let record = Ids {
            mask: optional(&mut mask)?,
            types: optional(&mut types)?,
            labels: optional(&mut labels)?,
            ids: next(&mut ids)?,
            fixed: fixed
                .iter_mut()
                .map(|column| next(column).map(Vec::into_boxed_slice))
                .collect::<Result<_, _>>()?,
        };
        take(Place::Row(row as u64), builder.build(Record::Ids(record)))?;
    }
    Ok(())
}

struct Header {
    metadata: Metadata,
    /// Where the tensors begin in the file.
    data: u64,
}

impl Header {
    fn read(path: &Path) -> Result<Self, FileError> {
        let damaged = |what: &str| FileError::Safetensors(what.to_owned());
        let mut file = File::open(path).map_err(FileError::Io)?;
        let length = file.metadata().map_err(FileError::Io)?.len();
        if length == 0 {
            return Err(FileError::Empty);
        }
        let mut prefix = [0; 8];
        file.read_exact(&mut prefix)
            .map_err(|_| damaged("the header is cut short"))?;
        let size = u64::from_le_bytes(prefix);
        if size > LARGEST_HEADER || size > length - 8 {
            return Err(damaged(
                "the header is cut short, or this is another kind of file",
            ));
        }
        let mut bytes = vec![0; size as usize];
        file.read_exact(&mut bytes).map_err(FileError::Io)?;
        let metadata: Metadata =
            serde_json::from_slice(&bytes).map_err(|error| damaged(&error.to_string()))?;
        let data = 8 + size;
        if metadata.data_len() as u64 != length - data {
            return Err(damaged("its length is not what the header says"));
        }
        Ok(Self { metadata, data })
    }

    fn tensor(&self, name: &str) -> Result<&TensorInfo, FileError> {
        self.metadata.info(name).ok_or_else(|| FileError::NoTensor {
            name: name.to_owned(),
            found: {
                let mut names: Vec<String> = self.metadata.tensors().into_keys().collect();
                names.sort();
                names
            },
        })
    }

    /// Refuses tensors of inputs that are made of the others, because they would not be read.
    fn refuse_made(&self, layout: &Layout) -> Result<(), FileError> {
        const READ: [&str; 4] = ["input_ids", "attention_mask", "labels", "token_type_ids"];
        let made = layout.made.iter().filter(|name| !READ.contains(name));
        for name in made {
            if self.metadata.info(name).is_some() {
                return Err(FileError::TensorMade((*name).to_owned()));
            }
        }
        Ok(())
    }

    fn open(&self, path: &Path, name: &str) -> Result<Column, FileError> {
        let info = self.tensor(name)?;
        let (width, decode) = decoder(info.dtype).ok_or_else(|| FileError::TensorType {
            name: name.to_owned(),
            found: format!("{:?}", info.dtype),
        })?;
        let elements = info.shape[1..].iter().product::<usize>();
        let mut file = File::open(path).map_err(FileError::Io)?;
        let start = self.data + info.data_offsets.0 as u64;
        file.seek(SeekFrom::Start(start)).map_err(FileError::Io)?;
        Ok(Column {
            reader: BufReader::new(file),
            buffer: vec![0; elements * width],
            width,
            decode,
        })
    }

    /// A tensor that goes with `input_ids`, if there is one.
    fn open_aligned(
        &self,
        path: &Path,
        name: &str,
        rows: usize,
        length: usize,
    ) -> Result<Option<Column>, FileError> {
        let Some(info) = self.metadata.info(name) else {
            return Ok(None);
        };
        if info.shape != [rows, length] {
            return Err(shape(
                name,
                info,
                &format!("{:?} like `input_ids`", [rows, length]),
            ));
        }
        self.open(path, name).map(Some)
    }

    fn open_labels(
        &self,
        path: &Path,
        task: Task,
        rows: usize,
        length: usize,
    ) -> Result<Option<Column>, FileError> {
        match task {
            Task::CausalLm => self.open_aligned(path, "labels", rows, length),
            Task::TokenCls => {
                self.tensor("labels")?;
                self.open_aligned(path, "labels", rows, length)
            }
            Task::SeqCls => {
                let info = self.tensor("labels")?;
                if info.shape != [rows] {
                    return Err(shape(
                        "labels",
                        info,
                        &format!("{:?}, a class a row", [rows]),
                    ));
                }
                self.open(path, "labels").map(Some)
            }
            Task::Seq2Seq => {
                let info = self.tensor("labels")?;
                if info.shape.len() != 2 || info.shape[0] != rows {
                    return Err(shape(
                        "labels",
                        info,
                        &format!("[{rows}, length of the target]"),
                    ));
                }
                self.open(path, "labels").map(Some)
            }
        }
    }
}

fn shape(name: &str, info: &TensorInfo, expected: &str) -> FileError {
    FileError::TensorShape {
        name: name.to_owned(),
        found: info.shape.clone(),
        expected: expected.to_owned(),
    }
}

type Decode = fn(&[u8]) -> i64;

/// Bytes of an element, and its value.
fn decoder(dtype: Dtype) -> Option<(usize, Decode)> {
    macro_rules! little_endian {
        ($int:ty) => {
            (size_of::<$int>(), |bytes| {
                let mut value = [0; size_of::<$int>()];
                value.copy_from_slice(bytes);
                // Of u64, values beyond i64 turn negative, which every check refuses.
                <$int>::from_le_bytes(value) as i64
            })
        };
    }
    Some(match dtype {
        Dtype::BOOL | Dtype::U8 => little_endian!(u8),
        Dtype::I8 => little_endian!(i8),
        Dtype::U16 => little_endian!(u16),
        Dtype::I16 => little_endian!(i16),
        Dtype::U32 => little_endian!(u32),
        Dtype::I32 => little_endian!(i32),
        Dtype::U64 => little_endian!(u64),
        Dtype::I64 => little_endian!(i64),
        _ => return None,
    })
}

/// A tensor that is read row by row.
struct Column {
    reader: BufReader<File>,
    /// One row.
    buffer: Vec<u8>,
    width: usize,
    decode: Decode,
}

impl Column {
    fn next(&mut self) -> std::io::Result<Vec<i64>> {
        self.reader.read_exact(&mut self.buffer)?;
        Ok(self
            .buffer
            .chunks_exact(self.width)
            .map(self.decode)
            .collect())
    }
}
