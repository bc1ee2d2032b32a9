//! Files of JSON lines, read block by block and tokenized on all cores.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::thread;

use crate::error::{DataError, DataErrorKind, FileError, Place};
use crate::example::{Builder, Example};
use crate::form::{Form, Record};

/// Bytes of text that are held at a time.
const BLOCK: usize = 4 << 20;

struct Line {
    number: u64,
    bytes: Vec<u8>,
}

/// Hands every line's example, or what is wrong with it, to `take`, in the order of the file. Blank lines are passed over.
pub(crate) fn read(
    path: &Path,
    builder: &Builder,
    form: Option<Form>,
    take: &mut impl FnMut(Place, Result<Example, DataErrorKind>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let io = |error| DataError::of_file(path, FileError::Io(error));
    let mut reader = BufReader::new(File::open(path).map_err(io)?);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let build = |line: &Line| {
        let task = builder.layout.task;
        Record::parse(&line.bytes, task, form).and_then(|record| builder.build(record))
    };
    let mut number = 0;
    let mut found = false;
    loop {
        let block = block(&mut reader, &mut number).map_err(io)?;
        let Some(lines) = block else { break };
        let share = lines.len().div_ceil(threads).max(1);
        let built = thread::scope(|scope| {
            let spawn =
                |lines| scope.spawn(move || Vec::from_iter(<[Line]>::iter(lines).map(build)));
            let workers: Vec<_> = lines.chunks(share).map(spawn).collect();
            let results = workers.into_iter().map(|worker| match worker.join() {
                Ok(built) => built,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            Vec::from_iter(results.flatten())
        });
        found |= !lines.is_empty();
        for (line, built) in lines.iter().zip(built) {
            take(Place::Line(line.number), built)?;
        }
    }
    if !found {
        return Err(DataError::of_file(path, FileError::Empty));
    }
    Ok(())
}

/// The next lines that are not blank; `None` at the end of the file.
fn block(reader: &mut impl BufRead, number: &mut u64) -> std::io::Result<Option<Vec<Line>>> {
    let mut lines = Vec::new();
    let mut size = 0;
    while size < BLOCK {
        let mut bytes = Vec::new();
        if reader.read_until(b'\n', &mut bytes)? == 0 {
            return Ok((size > 0).then_some(lines));
        }
        size += bytes.len();
        *number += 1;
        // A byte order mark, which some editors write.
        if *number == 1 && bytes.starts_with(b"\xEF\xBB\xBF") {
            bytes.drain(..3);
        }
        if !bytes.trim_ascii().is_empty() {
            lines.push(Line {
                number: *number,
                bytes,
            });
        }
    }
    Ok(Some(lines))
}
