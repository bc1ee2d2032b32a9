//! Tokenizers: a `tokenizer.json` with what stands in the files next to it.

mod checked;
mod folder;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use minijinja::Value;
use tokenizers::utils::truncation::{TruncationParams, truncate_encodings};
use tokenizers::{Encoding, PostProcessor};

use crate::chat::{self, ChatTemplate, Date};
use crate::error::{ChatError, DataError, DataErrorKind, FileError, RecordError, TokenizerError};

/// A Hugging Face tokenizer, with its special tokens and its chat template.
///
/// It gives the ids that transformers 5 gives with the same folder: truncation and padding settings inside of
/// tokenizer.json are ignored, and its post-processor alone decides which special tokens a text gets.
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    vocab: u64,
    pub(crate) eos: Option<Special>,
    pub(crate) bos: Option<Special>,
    pad: Option<u32>,
    template: Option<ChatTemplate>,
    /// Whether the post-processor ends a text with the end-of-sequence token.
    adds_eos: bool,
    label_ids: Option<BTreeMap<String, i64>>,
    decoder_start: Option<u32>,
    warnings: Vec<String>,
}

/// A special token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Special {
    pub(crate) token: String,
    pub(crate) id: u32,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("path", &self.path)
            .field("vocab", &self.vocab)
            .field("eos", &self.eos)
            .field("bos", &self.bos)
            .field("pad", &self.pad)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Opens a `tokenizer.json`.
    ///
    /// Read from the same folder, where they exist: `tokenizer_config.json` and `special_tokens_map.json` for the special
    /// tokens, `chat_template.jinja` or `chat_template` in `tokenizer_config.json` (a string, or a list of which the one
    /// named `default` is used), and `label2id` and `decoder_start_token_id` of the model's `config.json`.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or has another form, a special token without an id, a template that does not parse.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, DataError> {
        let path = path.into();
        let mut inner = load(&path).map_err(|kind| DataError::of_file(&path, kind))?;
        inner
            .with_truncation(None)
            .map_err(|error| {
                DataError::of_file(&path, TokenizerError::Tokenizer(error.to_string()))
            })?
            .with_padding(None);
        let folder = folder::read(&path)?;
        let largest = inner.get_vocab(true).into_values().max();
        let special = |key: &'static str| {
            let Some((token, source)) = folder.special.get(key) else {
                return Ok(None);
            };
            let id = inner.token_to_id(token).ok_or_else(|| {
                let token = token.clone();
                DataError::of_file(source, TokenizerError::SpecialToken { key, token })
            })?;
            Ok::<_, DataError>(Some(Special {
                token: token.clone(),
                id,
            }))
        };
        let (bos, eos, pad) = (
            special("bos_token")?,
            special("eos_token")?,
            special("pad_token")?,
        );
        let template = match folder.template {
            None => None,
            Some((source, file)) => {
                let special = folder.special.iter();
                let special = special
                    .map(|(key, (token, _))| (key.clone(), token.clone()))
                    .collect();
                let compiled = ChatTemplate::compile(&source, special);
                Some(compiled.map_err(|error| DataError::of_file(&file, error))?)
            }
        };
        let mut tokenizer = Self {
            vocab: largest.map_or(0, |id| u64::from(id) + 1),
            pad: pad.map(|pad| pad.id),
            inner,
            eos,
            bos,
            template,
            adds_eos: false,
            label_ids: folder.label_ids,
            decoder_start: folder.decoder_start,
            warnings: Vec::new(),
            path,
        };
        tokenizer.probe(folder.add_bos, folder.add_eos)?;
        Ok(tokenizer)
    }

    /// Fixes the date that templates get which ask for today's. Without it they are refused, because the same data would
    /// train differently from day to day.
    #[must_use]
    pub fn with_date(mut self, date: Date) -> Self {
        if let Some(template) = &mut self.template {
            template.set_date(date);
        }
        self
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The largest id plus one, added tokens included: the embeddings that a model must have at least.
    #[must_use]
    pub fn vocab(&self) -> u64 {
        self.vocab
    }

    /// The id that fills rows up: the padding token's, else the end-of-sequence token's, else 0.
    #[must_use]
    pub fn pad_id(&self) -> u32 {
        self.pad
            .or(self.eos.as_ref().map(|eos| eos.id))
            .unwrap_or(0)
    }

    /// The id that a decoder begins with: `decoder_start_token_id` of config.json, else [`Tokenizer::pad_id`], as in T5.
    #[must_use]
    pub fn decoder_start_id(&self) -> u32 {
        self.decoder_start.unwrap_or(self.pad_id())
    }

    /// What is legal but likely not meant, for a user to read.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The ids of a text, with the special tokens of the post-processor.
    ///
    /// # Errors
    ///
    /// If the tokenizer has no way to spell the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        Ok(self.encoding(text, true)?.get_ids().to_vec())
    }

    /// Renders a chat, given as a JSON list of messages, with the header of an answer to come if `generation_prompt`.
    ///
    /// # Errors
    ///
    /// If there is no template, if `messages` is no list of messages, or if the template refuses them.
    pub fn render_chat(
        &self,
        messages: &str,
        generation_prompt: bool,
    ) -> Result<String, DataError> {
        let values: Vec<Value> = serde_json::from_str(messages).map_err(RecordError::from)?;
        let messages = chat::messages(values)?;
        Ok(self
            .template()?
            .render(&messages, None, generation_prompt)?)
    }

    /// The model's configuration, which may be next to it.
    pub(crate) fn model_config(&self) -> PathBuf {
        folder::model_config(&self.path)
    }

    pub(crate) fn template(&self) -> Result<&ChatTemplate, ChatError> {
        self.template.as_ref().ok_or(ChatError::NoTemplate)
    }

    pub(crate) fn label_id(&self, label: &str) -> Result<i64, RecordError> {
        let ids = self.label_ids.as_ref();
        let known = || {
            ids.into_iter()
                .flat_map(|ids| ids.keys().cloned())
                .collect()
        };
        ids.and_then(|ids| ids.get(label).copied())
            .ok_or_else(|| RecordError::LabelName {
                label: label.to_owned(),
                known: known(),
            })
    }

    /// Encodes with byte offsets.
    pub(crate) fn encoding(&self, text: &str, special: bool) -> Result<Encoding, RecordError> {
        let encoding = self.inner.encode(text, special);
        encoding.map_err(|error| RecordError::Encode(error.to_string()))
    }

    /// The text to encode for a model to learn where it ends: with the end-of-sequence token, unless it or the
    /// post-processor has that already.
    pub(crate) fn ended(&self, mut text: String) -> String {
        if let Some(eos) = &self.eos
            && !self.adds_eos
            && !text.ends_with(&eos.token)
        {
            text.push_str(&eos.token);
        }
        text
    }

    /// Ids and token types of a text or a pair of texts, cut to `limit` as transformers cuts them: special tokens are
    /// kept, and of a pair the longer is cut first. The last number says how many tokens are lost.
    pub(crate) fn encode_within(
        &self,
        text: &str,
        pair: Option<&str>,
        limit: usize,
    ) -> Result<(Encoding, usize), RecordError> {
        let refuse = |error: tokenizers::Error| RecordError::Encode(error.to_string());
        let first = self.encoding(text, false)?;
        let second = match pair {
            None => None,
            Some(text) => {
                let mut second = self.encoding(text, false)?;
                second.set_type_ids(vec![1; second.len()]);
                Some(second)
            }
        };
        let processor = self.inner.get_post_processor();
        let special = processor.map_or(0, |processor| processor.added_tokens(pair.is_some()));
        let room = limit.checked_sub(special).filter(|room| *room > 0);
        let max_length = room.ok_or(RecordError::NoRoom {
            special,
            seq: limit,
        })?;
        let all = first.len() + second.as_ref().map_or(0, Encoding::len);
        let params = TruncationParams {
            max_length,
            ..TruncationParams::default()
        };
        let (first, second) = truncate_encodings(first, second, &params).map_err(refuse)?;
        let kept = first.len() + second.as_ref().map_or(0, Encoding::len);
        let encoding = self
            .inner
            .post_process(first, second, true)
            .map_err(refuse)?;
        Ok((encoding, all - kept))
    }

    /// Finds out what the post-processor adds, and compares it with what tokenizer_config.json claims.
    fn probe(&mut self, add_bos: Option<bool>, add_eos: Option<bool>) -> Result<(), DataError> {
        let token = tokenizers::Token::new(0, "a".to_owned(), (0, 1));
        let encoding = Encoding::from_tokens(vec![token], 0);
        let encoding = self
            .inner
            .post_process(encoding, None, true)
            .map_err(|error| {
                DataError::of_file(&self.path, TokenizerError::Tokenizer(error.to_string()))
            })?;
        let added = |index: Option<usize>, token: &Option<Special>| {
            index.is_some_and(|index| {
                let special = encoding.get_special_tokens_mask().get(index) == Some(&1);
                special
                    && encoding.get_ids().get(index).copied()
                        == token.as_ref().map(|token| token.id)
            })
        };
        let adds_bos = added(Some(0), &self.bos);
        self.adds_eos = added(encoding.len().checked_sub(1), &self.eos);
        let claims = [
            ("add_bos_token", "bos_token", add_bos, adds_bos),
            ("add_eos_token", "eos_token", add_eos, self.adds_eos),
        ];
        for (key, token, claim, fact) in claims {
            if claim.is_some_and(|claim| claim != fact) {
                let adds = if fact { "adds it" } else { "does not add it" };
                self.warnings.push(format!(
                    "tokenizer_config.json says `{key}`: {}, but the post-processor of tokenizer.json {adds}, and that \
                     decides about `{token}` (as in transformers 5)",
                    !fact
                ));
            }
        }
        Ok(())
    }
}

fn load(path: &Path) -> Result<tokenizers::Tokenizer, DataErrorKind> {
    let bytes = checked::checked(&read(path)?)?;
    let tokenizer = tokenizers::Tokenizer::from_bytes(bytes);
    Ok(tokenizer.map_err(|error| TokenizerError::Tokenizer(error.to_string()))?)
}

/// A file's bytes.
fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    if path.is_dir() {
        return Err(FileError::Directory);
    }
    fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => FileError::NotFound,
        _ => FileError::Io(error),
    })
}
