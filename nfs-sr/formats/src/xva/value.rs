//! The values of XML-RPC, of which `ova.xml` is one.

use std::io;

use quick_xml::{
    Reader, Writer,
    events::{BytesEnd, BytesStart, BytesText, Event},
};

use crate::error::{Error, damaged};

/// Deepest nesting: a real description has eight levels.
const MAX_DEPTH: usize = 32;
const PLACE: &str = "ova.xml";

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Strings, numbers, references, enumerations: bare text.
    Text(String),
    Bool(bool),
    Date(String),
    Struct(Vec<(String, Value)>),
    Array(Vec<Value>),
}

impl Value {
    pub fn text(text: impl ToString) -> Self {
        Self::Text(text.to_string())
    }

    pub fn empty_map() -> Self {
        Self::Struct(Vec::new())
    }

    pub fn map<const N: usize>(members: [(&str, Value); N]) -> Self {
        Self::Struct(
            members
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        )
    }

    /// A member of a struct.
    pub fn get(&self, name: &str) -> Option<&Value> {
        match self {
            Self::Struct(members) => members
                .iter()
                .find_map(|(key, value)| (key == name).then_some(value)),
            _ => None,
        }
    }

    /// Text of a member; empty if there is none.
    pub fn str(&self, name: &str) -> &str {
        match self.get(name) {
            Some(Self::Text(text)) => text,
            _ => "",
        }
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        self.str(name).trim().parse().ok()
    }

    pub fn bool(&self, name: &str) -> bool {
        matches!(self.get(name), Some(Self::Bool(true)))
    }

    pub fn items(&self) -> &[Value] {
        match self {
            Self::Array(items) => items,
            _ => &[],
        }
    }

    pub fn to_xml(&self) -> String {
        let mut bytes = Vec::new();
        self.write(&mut Writer::new(&mut bytes))
            .expect("memory takes it");
        String::from_utf8(bytes).expect("made of strings")
    }

    fn write(&self, out: &mut Writer<&mut Vec<u8>>) -> io::Result<()> {
        let open = |out: &mut Writer<_>, name| out.write_event(Event::Start(BytesStart::new(name)));
        let close = |out: &mut Writer<_>, name| out.write_event(Event::End(BytesEnd::new(name)));
        let leaf = |out: &mut Writer<_>, name, text: &str| {
            open(out, name)?;
            out.write_event(Event::Text(BytesText::new(text)))?;
            close(out, name)
        };
        open(out, "value")?;
        match self {
            Self::Text(text) => out.write_event(Event::Text(BytesText::new(text)))?,
            Self::Bool(flag) => leaf(out, "boolean", if *flag { "1" } else { "0" })?,
            Self::Date(date) => leaf(out, "dateTime.iso8601", date)?,
            Self::Struct(members) => {
                open(out, "struct")?;
                for (name, value) in members {
                    open(out, "member")?;
                    leaf(out, "name", name)?;
                    value.write(out)?;
                    close(out, "member")?;
                }
                close(out, "struct")?;
            }
            Self::Array(items) => {
                open(out, "array")?;
                open(out, "data")?;
                items.iter().try_for_each(|item| item.write(out))?;
                close(out, "data")?;
                close(out, "array")?;
            }
        }
        close(out, "value")
    }

    pub fn parse(xml: &str) -> Result<Self, Error> {
        let mut reader = Reader::from_str(xml);
        reader.config_mut().expand_empty_elements = true;
        let mut parser = Parser { reader };
        match parser.tag()? {
            Some(Tag::Open(name)) if name == "value" => parser.value(0),
            _ => damaged(PLACE, "it does not begin with <value>"),
        }
    }
}

enum Tag {
    Open(String),
    Close,
}

struct Parser<'a> {
    reader: Reader<&'a [u8]>,
}

impl Parser<'_> {
    fn wrong<T>(&self, why: impl std::fmt::Display) -> Result<T, Error> {
        damaged(
            format!("{PLACE}, byte {}", self.reader.buffer_position()),
            why.to_string(),
        )
    }

    /// Text up to the next tag, and that tag; none at the end.
    fn step(&mut self, text: &mut String) -> Result<Option<Tag>, Error> {
        loop {
            let event = match self.reader.read_event() {
                Ok(event) => event,
                Err(error) => return self.wrong(error),
            };
            match event {
                Event::Start(start) => {
                    let name = String::from_utf8_lossy(start.name().as_ref()).into_owned();
                    return Ok(Some(Tag::Open(name)));
                }
                Event::End(_) => return Ok(Some(Tag::Close)),
                Event::Text(piece) => match piece.decode() {
                    Ok(piece) => text.push_str(&piece),
                    Err(error) => return self.wrong(error),
                },
                Event::CData(piece) => match piece.decode() {
                    Ok(piece) => text.push_str(&piece),
                    Err(error) => return self.wrong(error),
                },
                Event::GeneralRef(reference) => match crate::xml_reference(&reference) {
                    Some(character) => text.push(character),
                    None => return self.wrong("it has a reference that XML does not define"),
                },
                Event::Eof => return Ok(None),
                Event::DocType(_) => return self.wrong("it defines types of its own"),
                // Empty elements come as a start and an end.
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::Empty(_) => {}
            }
        }
    }

    /// The next tag, before which there may be nothing but space.
    fn tag(&mut self) -> Result<Option<Tag>, Error> {
        let mut text = String::new();
        let tag = self.step(&mut text)?;
        if text.trim().is_empty() {
            Ok(tag)
        } else {
            self.wrong("it has text between its elements")
        }
    }

    fn open(&mut self, expected: &str) -> Result<bool, Error> {
        match self.tag()? {
            Some(Tag::Open(name)) if name == expected => Ok(true),
            Some(Tag::Close) => Ok(false),
            Some(Tag::Open(name)) => {
                self.wrong(format!("<{name}> is where <{expected}> should be"))
            }
            None => self.wrong("it ends in the middle"),
        }
    }

    fn close(&mut self) -> Result<(), Error> {
        match self.tag()? {
            Some(Tag::Close) => Ok(()),
            Some(Tag::Open(name)) => self.wrong(format!("<{name}> is where an element should end")),
            None => self.wrong("it ends in the middle"),
        }
    }

    fn leaf(&mut self) -> Result<String, Error> {
        let mut text = String::new();
        match self.step(&mut text)? {
            Some(Tag::Close) => Ok(text),
            Some(Tag::Open(name)) => self.wrong(format!("<{name}> is where text should be")),
            None => self.wrong("it ends in the middle"),
        }
    }

    /// What is in `<value>`, which was read, up to and with its end.
    fn value(&mut self, depth: usize) -> Result<Value, Error> {
        if depth > MAX_DEPTH {
            return self.wrong(format!("it is nested deeper than {MAX_DEPTH} levels"));
        }
        let mut text = String::new();
        let kind = match self.step(&mut text)? {
            None => return self.wrong("it ends in the middle"),
            Some(Tag::Close) => return Ok(Value::Text(text)),
            Some(Tag::Open(kind)) => kind,
        };
        let value = match kind.as_str() {
            "struct" => {
                let mut members = Vec::new();
                while self.open("member")? {
                    if !self.open("name")? {
                        return self.wrong("a member has no name");
                    }
                    let name = self.leaf()?;
                    if !self.open("value")? {
                        return self.wrong(format!("member {name} has no value"));
                    }
                    members.push((name, self.value(depth + 1)?));
                    self.close()?;
                }
                Value::Struct(members)
            }
            "array" => {
                let mut items = Vec::new();
                if self.open("data")? {
                    while self.open("value")? {
                        items.push(self.value(depth + 1)?);
                    }
                    self.close()?;
                }
                Value::Array(items)
            }
            "boolean" => Value::Bool(self.leaf()?.trim() == "1"),
            "dateTime.iso8601" => Value::Date(self.leaf()?),
            "string" | "int" | "i4" | "i8" | "double" | "nil" => Value::Text(self.leaf()?),
            other => return self.wrong(format!("<{other}> is no type of XML-RPC")),
        };
        self.close()?;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let value = Value::map([
            ("text", Value::text("a <b> & \"c\" 'd' é")),
            ("empty", Value::text("")),
            ("flag", Value::Bool(true)),
            ("date", Value::Date("19700101T00:00:00Z".into())),
            ("map", Value::empty_map()),
            (
                "set",
                Value::Array(vec![Value::text(1), Value::Array(Vec::new())]),
            ),
        ]);
        assert_eq!(Value::parse(&value.to_xml()).expect("well formed"), value);
    }

    #[test]
    fn other_writers_are_understood() {
        let xml = "<?xml version='1.0'?>\n<value><struct>\n <member><name>a</name>\n <value><string>x&#65;</string></value></member>\
                   <member><name>n</name><value><int>7</int></value></member>\
                   <member><name>e</name><value><struct/></value></member><member><name>s</name><value/></member></struct></value>";
        let value = Value::parse(xml).expect("well formed");
        assert_eq!((value.str("a"), value.number("n")), ("xA", Some(7)));
        assert_eq!(value.get("e"), Some(&Value::empty_map()));
        assert_eq!(value.get("s"), Some(&Value::text("")));
    }
}
