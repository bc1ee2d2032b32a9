//! Data sets: examples in memory, and the rows they form.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{DataError, DataErrorKind, FileError, Place, TokenizerError, UseError};
use crate::example::{Builder, Example};
use crate::form::Form;
use crate::pack::pack;
use crate::permutation::permutation;
use crate::spec::{DECODER_INPUT_IDS, Layout, Spec, SpecError, Task};
use crate::tokenizer::Tokenizer;
use crate::{jsonl, safetensors};

/// How files are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Puts several examples of a causal language model in one row, by best-fit decreasing as TRL does: no example is cut
    /// unless it is longer than the row.
    ///
    /// The first label of each example in a shared row is -100, so that no example predicts the next one's first token, and
    /// `position_ids`, if the model takes them, begin again with each. **Attention does cross examples**: the graph has one
    /// mask entry a token, which cannot part them. Packing is for speed where that is acceptable.
    pub pack: bool,
    /// Counts bad lines and rows instead of failing at the first. If all are bad, that is an error still.
    pub skip_bad: bool,
    /// The form of the lines, where their keys fit several.
    pub form: Option<Form>,
}

/// Examples in memory, unpadded, and the rows that they form.
#[derive(Debug, Clone)]
pub struct Dataset {
    pub(crate) layout: Arc<Layout>,
    examples: Vec<Example>,
    /// The examples of each row; `None` if every example is a row.
    rows: Option<Vec<Box<[u32]>>>,
    pub(crate) pad: u32,
    pub(crate) start: u32,
    reading: Reading,
}

/// What happened while files were read.
#[derive(Debug, Clone, Default)]
struct Reading {
    dropped: u64,
    skipped: u64,
    skipped_at: Vec<Skipped>,
    warnings: Vec<String>,
}

/// What a data set holds, and what became of the files it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Examples.
    pub examples: u64,
    /// Rows; fewer than examples if they are packed.
    pub rows: u64,
    /// Tokens that are not padding; targets of seq2seq included.
    pub tokens: u64,
    /// Labels that count in the loss, as in [`Batch::trained_tokens`](crate::Batch).
    pub trained_tokens: u64,
    /// Examples that were cut to the sequence length.
    pub truncated: u64,
    /// Tokens that were cut off them.
    pub tokens_lost: u64,
    /// Examples of the files that had no tokens, or no label that trains, and are in no data set. Not divided by a split.
    pub dropped: u64,
    /// Bad lines and rows of the files. Not divided by a split.
    pub skipped: u64,
    /// The first ten of them.
    pub skipped_at: Vec<Skipped>,
    /// What is legal but likely not meant, for a user to read.
    pub warnings: Vec<String>,
}

/// A line or row that [`Options::skip_bad`] passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The file, as it was given.
    pub path: PathBuf,
    /// Where in it.
    pub place: Place,
    /// What is wrong there.
    pub error: String,
}

/// The size of an evaluation set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum EvalSize {
    /// This part of the examples, above 0 and below 1, rounded up.
    Fraction(f64),
    /// This many examples.
    Count(usize),
}

/// Lines that [`Summary::skipped_at`] names.
const NAMED: usize = 10;

impl Dataset {
    /// Reads files, in the order given; the ending of a name tells its format.
    ///
    /// `tokenizer` may be `None` if all data is token ids; rows are then padded with 0.
    ///
    /// # Errors
    ///
    /// A step whose inputs data cannot fill, a tokenizer with more ids than the model has embeddings, a start token that the
    /// model lacks, a file that cannot be read, and the first bad line or row, unless [`Options::skip_bad`].
    pub fn load<P: AsRef<Path>>(
        files: &[P],
        spec: &Spec,
        tokenizer: Option<&Tokenizer>,
        options: &Options,
    ) -> Result<Self, DataError> {
        let layout = Layout::new(spec)?;
        if options.pack && layout.task != Task::CausalLm {
            return Err(SpecError::Pack(layout.task).into());
        }
        if options.pack
            && let Some((name, _)) = layout.fixed.first()
        {
            return Err(FileError::CannotPack(name.clone()).into());
        }
        if let (Some(tokenizer), Some(model)) = (tokenizer, spec.vocab)
            && tokenizer.vocab() > model
        {
            let tokenizer_vocab = tokenizer.vocab();
            let error = TokenizerError::Vocabulary {
                tokenizer: tokenizer_vocab,
                model,
            };
            return Err(DataError::of_file(tokenizer.path(), error));
        }
        let start = tokenizer.map_or(0, Tokenizer::decoder_start_id);
        if let Some(tokenizer) = tokenizer
            && layout.made.contains(&DECODER_INPUT_IDS)
            && u64::from(start) >= layout.ids()
        {
            let error = TokenizerError::DecoderStart {
                id: start,
                vocab: layout.ids(),
            };
            return Err(DataError::of_file(&tokenizer.model_config(), error));
        }
        let mut intake = Intake {
            task: layout.task,
            skip_bad: options.skip_bad,
            examples: Vec::new(),
            reading: Reading::default(),
            first_bad: None,
        };
        let builder = Builder {
            layout: &layout,
            tokenizer,
        };
        for file in files {
            intake.read(file.as_ref(), &builder, options.form)?;
        }
        let (examples, mut reading) = intake.finish(layout.seq)?;
        if let Some(tokenizer) = tokenizer {
            reading.warnings = tokenizer.warnings().to_vec();
        }
        let mut dataset = Self {
            layout: Arc::new(layout),
            examples,
            rows: None,
            pad: tokenizer.map_or(0, Tokenizer::pad_id),
            start,
            reading,
        };
        if options.pack {
            dataset.pack();
        }
        Ok(dataset)
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.as_ref().map_or(self.examples.len(), Vec::len)
    }

    /// Never: a data set without rows is an error when it is read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts of what there is.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let task = self.layout.task;
        let sum = |of: &dyn Fn(&Example) -> u64| self.examples.iter().map(of).sum();
        Summary {
            examples: self.examples.len() as u64,
            rows: self.len() as u64,
            tokens: sum(&|example| example.tokens(task)),
            trained_tokens: sum(&|example| example.trained(task)),
            truncated: sum(&|example| u64::from(example.lost > 0)),
            tokens_lost: sum(&|example| u64::from(example.lost)),
            dropped: self.reading.dropped,
            skipped: self.reading.skipped,
            skipped_at: self.reading.skipped_at.clone(),
            warnings: self.reading.warnings.clone(),
        }
    }

    /// Splits off an evaluation set: `(train, eval)`. Which examples it gets depends on their number, on the size and on
    /// `seed` alone; both sides keep the order of the files. Packed examples are packed anew on each side.
    ///
    /// # Errors
    ///
    /// If one side would be empty.
    pub fn split(self, eval: EvalSize, seed: u64) -> Result<(Self, Self), DataError> {
        let total = self.examples.len();
        let refuse = |eval: String| UseError::Split {
            eval,
            examples: total,
        };
        let count = match eval {
            EvalSize::Count(count) => count,
            EvalSize::Fraction(part) if part > 0.0 && part < 1.0 => {
                (total as f64 * part).ceil() as usize
            }
            EvalSize::Fraction(part) => return Err(refuse(part.to_string()).into()),
        };
        if count == 0 || count >= total {
            return Err(refuse(count.to_string()).into());
        }
        let mut chosen = vec![false; total];
        // A stream that no epoch of a sampler uses.
        for index in permutation(total, seed, u64::MAX).into_iter().take(count) {
            chosen[index] = true;
        }
        let mut train = Self {
            examples: Vec::with_capacity(total - count),
            ..self
        };
        let mut eval = Self {
            examples: Vec::with_capacity(count),
            rows: train.rows.clone(),
            layout: Arc::clone(&train.layout),
            reading: train.reading.clone(),
            ..train
        };
        for (example, chosen) in self.examples.into_iter().zip(chosen) {
            let side = if chosen { &mut eval } else { &mut train };
            side.examples.push(example);
        }
        if train.is_packed() {
            train.pack();
            eval.pack();
        }
        Ok((train, eval))
    }

    /// The examples of a row.
    pub(crate) fn row(&self, row: usize) -> Vec<&Example> {
        let example = |index: &u32| &self.examples[*index as usize];
        match &self.rows {
            Some(rows) => rows[row].iter().map(example).collect(),
            None => vec![&self.examples[row]],
        }
    }

    /// Whether examples share rows.
    pub(crate) fn is_packed(&self) -> bool {
        self.rows.is_some()
    }

    fn pack(&mut self) {
        let lengths: Vec<usize> = self
            .examples
            .iter()
            .map(|example| example.ids.len())
            .collect();
        self.rows = Some(pack(&lengths, self.layout.seq));
    }
}

/// Collects what readers hand over.
struct Intake {
    task: Task,
    skip_bad: bool,
    examples: Vec<Example>,
    reading: Reading,
    first_bad: Option<DataError>,
}

impl Intake {
    fn read(
        &mut self,
        path: &Path,
        builder: &Builder,
        form: Option<Form>,
    ) -> Result<(), DataError> {
        let refuse = |error| DataError::of_file(path, error);
        let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => refuse(FileError::NotFound),
            _ => refuse(FileError::Io(error)),
        })?;
        if metadata.is_dir() {
            return Err(refuse(FileError::Directory));
        }
        let mut take = |place, built| self.take(path, place, built);
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("jsonl" | "json") => match builder.layout.fixed.first() {
                None => jsonl::read(path, builder, form, &mut take),
                Some((name, _)) => Err(DataError::of_file(
                    path,
                    SpecError::Unknown {
                        name: name.clone(),
                        task: builder.layout.task,
                    },
                )),
            },
            Some("safetensors") => safetensors::read(path, builder, &mut take),
            _ => Err(refuse(FileError::Ending)),
        }
    }

    fn take(
        &mut self,
        path: &Path,
        place: Place,
        built: Result<Example, DataErrorKind>,
    ) -> Result<(), DataError> {
        match built {
            Ok(example) if example.ids.is_empty() || example.trained(self.task) == 0 => {
                self.reading.dropped += 1
            }
            Ok(example) => self.examples.push(example),
            Err(kind) => {
                let error = DataError::in_file(path, place, kind);
                if !self.skip_bad {
                    return Err(error);
                }
                self.reading.skipped += 1;
                if self.reading.skipped_at.len() < NAMED {
                    self.reading.skipped_at.push(Skipped {
                        path: path.to_owned(),
                        place,
                        error: error.kind.to_string(),
                    });
                }
                self.first_bad.get_or_insert(error);
            }
        }
        Ok(())
    }

    fn finish(self, seq: usize) -> Result<(Vec<Example>, Reading), DataError> {
        let Reading {
            dropped, skipped, ..
        } = self.reading;
        match (self.examples.is_empty(), self.first_bad) {
            (false, _) => Ok((self.examples, self.reading)),
            (true, Some(first)) if dropped == 0 => {
                let first = Box::new(first);
                Err(FileError::AllBad {
                    count: skipped,
                    first,
                }
                .into())
            }
            (true, _) if dropped > 0 => Err(FileError::NoRows { dropped, seq }.into()),
            (true, _) => Err(FileError::NoFiles.into()),
        }
    }
}
