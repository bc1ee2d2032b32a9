//! What a model says, as a flat list that two decoders can be compared by.

/// One field with a value, and where it is.
pub struct Fact {
    /// Such as `graph.node[3].op_type`.
    pub place: String,
    /// The bytes themselves, or a number's text.
    pub value: Vec<u8>,
}

/// Everything a model says, in the order of a fixed walk.
#[derive(Default)]
pub struct Facts {
    /// The facts.
    pub list: Vec<Fact>,
    place: Vec<String>,
}

impl Facts {
    /// Notes a field of the current message.
    pub fn note(&mut self, field: &str, value: impl AsRef<[u8]>) {
        self.list.push(Fact {
            place: format!("{}.{field}", self.place.join(".")),
            value: value.as_ref().to_vec(),
        });
    }

    /// Notes a list of scalars by their text. Floats must come as their bits.
    pub fn numbers<T: ToString>(&mut self, field: &str, values: impl IntoIterator<Item = T>) {
        let texts: Vec<_> = values.into_iter().map(|value| value.to_string()).collect();
        self.note(field, texts.join(" "));
    }

    /// Notes a list of byte strings.
    pub fn strings<T: AsRef<[u8]>>(&mut self, field: &str, values: &[T]) {
        self.numbers(&format!("{field}.len"), [values.len()]);
        for value in values {
            self.note(field, value);
        }
    }

    /// Walks every message of a repeated or optional field.
    pub fn each<'a, T: 'a>(
        &mut self,
        field: &str,
        values: impl IntoIterator<Item = &'a T>,
        walk: impl Fn(&mut Self, &'a T),
    ) {
        let mut count = 0;
        for value in values {
            self.place.push(format!("{field}[{count}]"));
            walk(self, value);
            self.place.pop();
            count += 1;
        }
        self.numbers(&format!("{field}.len"), [count]);
    }
}
