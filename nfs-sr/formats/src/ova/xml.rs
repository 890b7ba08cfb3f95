//! A small tree of XML, without prefixes: OVF's writers do not agree on them.

use quick_xml::{
    Reader, XmlVersion,
    events::{BytesStart, Event},
};

use crate::error::{Error, damaged};

const MAX_DEPTH: usize = 64;

#[derive(Clone, Debug, Default)]
pub(super) struct Element {
    pub name: String,
    attributes: Vec<(String, String)>,
    pub text: String,
    pub children: Vec<Element>,
}

impl Element {
    pub fn parse(place: &str, xml: &str) -> Result<Self, Error> {
        let mut reader = Reader::from_str(xml);
        reader.config_mut().expand_empty_elements = true;
        let mut open: Vec<Self> = Vec::new();
        loop {
            let here = format!("{place}, byte {}", reader.buffer_position());
            match reader.read_event() {
                Err(error) => return damaged(here, error.to_string()),
                Ok(Event::Start(start)) => {
                    if open.len() == MAX_DEPTH {
                        return damaged(
                            here,
                            format!("it is nested deeper than {MAX_DEPTH} levels"),
                        );
                    }
                    open.push(Self::open(&here, &start)?);
                }
                Ok(Event::End(_)) => {
                    let Some(done) = open.pop() else {
                        return damaged(here, "an element ends that did not begin");
                    };
                    match open.last_mut() {
                        Some(parent) => parent.children.push(done),
                        None => return Ok(done),
                    }
                }
                Ok(Event::Text(text)) => {
                    if let (Some(element), Ok(text)) = (open.last_mut(), text.decode()) {
                        element.text.push_str(&text);
                    }
                }
                Ok(Event::GeneralRef(reference)) => {
                    let Some(character) = crate::xml_reference(&reference) else {
                        return damaged(here, "it has a reference that XML does not define");
                    };
                    if let Some(element) = open.last_mut() {
                        element.text.push(character);
                    }
                }
                Ok(Event::DocType(_)) => return damaged(here, "it defines types of its own"),
                Ok(Event::Eof) => return damaged(here, "it ends in the middle"),
                Ok(_) => {}
            }
        }
    }

    fn open(place: &str, start: &BytesStart<'_>) -> Result<Self, Error> {
        let local = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        let mut attributes = Vec::new();
        for attribute in start.attributes() {
            let attribute = attribute.or_else(|error| damaged(place, error.to_string()))?;
            let value = attribute
                .normalized_value(XmlVersion::Implicit1_0)
                .or_else(|error| damaged(place, error.to_string()))?;
            attributes.push((
                local(attribute.key.local_name().as_ref()),
                value.into_owned(),
            ));
        }
        Ok(Self {
            name: local(start.local_name().as_ref()),
            attributes,
            ..Self::default()
        })
    }

    /// An attribute; empty if there is none.
    pub fn attribute(&self, name: &str) -> &str {
        let found = self.attributes.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value)
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// Text of a child; empty if there is none.
    pub fn child_text(&self, name: &str) -> &str {
        self.child(name).map_or("", |child| child.text.trim())
    }
}
