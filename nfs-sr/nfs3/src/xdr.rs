//! XDR (RFC 4506), as far as NFS needs it.
//!
//! Every variable-length item has a limit at the place where it is decoded, and nothing is allocated
//! from a length that the input has not proven by bytes. Input bytes are borrowed, never copied.

use alloc::vec::Vec;

/// Why bytes are not what they claim to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The item ends after the input does.
    #[error("the message ends early: {needed} bytes are needed, {left} are left")]
    Truncated {
        /// Bytes of the item.
        needed: usize,
        /// Bytes there are.
        left: usize,
    },
    /// A length above its limit.
    #[error("an item of {length} bytes is longer than its limit of {limit}")]
    TooLong {
        /// What the message says.
        length: usize,
        /// What is allowed.
        limit: usize,
    },
    /// A value that its type does not have.
    #[error("{value} is not a value of {what}")]
    BadValue {
        /// The type.
        what: &'static str,
        /// What the message says.
        value: u32,
    },
    /// More bytes than the message has items.
    #[error("{0} bytes follow the end of the message")]
    Trailing(usize),
}

/// Something that can be appended to a message.
pub trait Encode {
    /// Appends the XDR form of `self`.
    fn encode(&self, out: &mut Vec<u8>);
}

/// Something that can be read from a message, borrowing from it.
pub trait Decode<'a>: Sized {
    /// Reads the item at the front of `input`.
    fn decode(input: &mut Decoder<'a>) -> Result<Self, Malformed>;
}

/// The part of a message that is not yet decoded.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Decodes from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not yet decoded.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Takes `length` bytes as they are, without padding.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        match self.rest.split_at_checked(length) {
            Some((item, rest)) => {
                self.rest = rest;
                Ok(item)
            }
            None => Err(Malformed::Truncated {
                needed: length,
                left: self.rest.len(),
            }),
        }
    }

    /// Opaque data of a fixed length (RFC 4506 section 4.9).
    pub fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        self.take(padding(N))?;
        Ok(bytes)
    }

    /// Variable-length opaque data of at most `limit` bytes (RFC 4506 section 4.10).
    pub fn opaque(&mut self, limit: usize) -> Result<&'a [u8], Malformed> {
        let length = u32::decode(self)? as usize;
        if length > limit {
            return Err(Malformed::TooLong { length, limit });
        }
        let bytes = self.take(length)?;
        self.take(padding(length))?;
        Ok(bytes)
    }

    /// Decodes one item.
    pub fn get<T: Decode<'a>>(&mut self) -> Result<T, Malformed> {
        T::decode(self)
    }

    /// Says that the message must end here.
    pub fn finish(self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            n => Err(Malformed::Trailing(n)),
        }
    }
}

/// Decodes a message that consists of one item and nothing else.
pub fn decode_all<'a, T: Decode<'a>>(bytes: &'a [u8]) -> Result<T, Malformed> {
    let mut input = Decoder::new(bytes);
    let item = T::decode(&mut input)?;
    input.finish()?;
    Ok(item)
}

/// Zero bytes that bring an item of `length` bytes to a multiple of four.
pub fn padding(length: usize) -> usize {
    length.wrapping_neg() % 4
}

/// Appends opaque data of a fixed length.
pub fn put_fixed(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.resize(out.len() + padding(bytes.len()), 0);
}

/// Appends variable-length opaque data.
pub fn put_opaque(out: &mut Vec<u8>, bytes: &[u8]) {
    (bytes.len() as u32).encode(out);
    put_fixed(out, bytes);
}

impl Encode for () {
    fn encode(&self, _: &mut Vec<u8>) {}
}

impl Decode<'_> for () {
    fn decode(_: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Ok(())
    }
}

impl Encode for u32 {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_be_bytes());
    }
}

impl Decode<'_> for u32 {
    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        input.fixed().map(u32::from_be_bytes)
    }
}

impl Encode for u64 {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_be_bytes());
    }
}

impl Decode<'_> for u64 {
    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        input.fixed().map(u64::from_be_bytes)
    }
}

impl Encode for bool {
    fn encode(&self, out: &mut Vec<u8>) {
        u32::from(*self).encode(out);
    }
}

impl Decode<'_> for bool {
    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        match u32::decode(input)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(Malformed::BadValue {
                what: "a boolean",
                value,
            }),
        }
    }
}

/// Verifiers and other opaque items of fixed length.
impl<const N: usize> Encode for [u8; N] {
    fn encode(&self, out: &mut Vec<u8>) {
        put_fixed(out, self);
    }
}

impl<const N: usize> Decode<'_> for [u8; N] {
    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        input.fixed()
    }
}

/// Optional data (RFC 4506 section 4.19), and the unions of NFS that carry an item or nothing.
impl<T: Encode> Encode for Option<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.is_some().encode(out);
        if let Some(item) = self {
            item.encode(out);
        }
    }
}

impl<'a, T: Decode<'a>> Decode<'a> for Option<T> {
    fn decode(input: &mut Decoder<'a>) -> Result<Self, Malformed> {
        Ok(match bool::decode(input)? {
            true => Some(T::decode(input)?),
            false => None,
        })
    }
}

/// A linked list: each item is preceded by "there is one", the last followed by "there is none".
/// (Arrays with a leading count, which are rare in these programs, are written out where they occur.)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

impl<T: Encode> Encode for List<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        for item in &self.0 {
            true.encode(out);
            item.encode(out);
        }
        false.encode(out);
    }
}

impl<'a, T: Decode<'a>> Decode<'a> for List<T> {
    fn decode(input: &mut Decoder<'a>) -> Result<Self, Malformed> {
        let mut items = Vec::new();
        while bool::decode(input)? {
            items.push(T::decode(input)?);
        }
        Ok(Self(items))
    }
}

/// Declares a struct whose XDR form is its fields in order.
macro_rules! xdr_struct {
    ($(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$fmeta])* pub $field: $type,)* }

        impl $crate::xdr::Encode for $name {
            fn encode(&self, out: &mut alloc::vec::Vec<u8>) {
                $(self.$field.encode(out);)*
            }
        }

        impl $crate::xdr::Decode<'_> for $name {
            fn decode(input: &mut $crate::xdr::Decoder<'_>) -> Result<Self, $crate::xdr::Malformed> {
                Ok(Self { $($field: input.get()?,)* })
            }
        }
    };
    ($(#[$meta:meta])* $name:ident<$life:lifetime> { $($(#[$fmeta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name<$life> { $($(#[$fmeta])* pub $field: $type,)* }

        impl $crate::xdr::Encode for $name<'_> {
            fn encode(&self, out: &mut alloc::vec::Vec<u8>) {
                $(self.$field.encode(out);)*
            }
        }

        impl<$life> $crate::xdr::Decode<$life> for $name<$life> {
            fn decode(input: &mut $crate::xdr::Decoder<$life>) -> Result<Self, $crate::xdr::Malformed> {
                Ok(Self { $($field: input.get()?,)* })
            }
        }
    };
}

/// Declares an enumeration by its numbers on the wire.
macro_rules! xdr_enum {
    ($(#[$meta:meta])* $name:ident as $what:literal { $($(#[$vmeta:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum $name { $($(#[$vmeta])* $variant = $value,)* }

        impl $name {
            /// The value that a number on the wire stands for.
            pub fn from_wire(value: u32) -> Result<Self, $crate::xdr::Malformed> {
                match value {
                    $($value => Ok(Self::$variant),)*
                    value => Err($crate::xdr::Malformed::BadValue { what: $what, value }),
                }
            }
        }

        impl $crate::xdr::Encode for $name {
            fn encode(&self, out: &mut alloc::vec::Vec<u8>) {
                (*self as u32).encode(out);
            }
        }

        impl $crate::xdr::Decode<'_> for $name {
            fn decode(input: &mut $crate::xdr::Decoder<'_>) -> Result<Self, $crate::xdr::Malformed> {
                Self::from_wire(input.get()?)
            }
        }
    };
}

/// Declares a borrowed byte string with the limit that its decoder enforces.
macro_rules! xdr_bytes {
    ($(#[$meta:meta])* $name:ident, $limit:expr) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name<'a>(pub &'a [u8]);

        impl core::fmt::Debug for $name<'_> {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.0.len() {
                    0..=255 => write!(f, "\"{}\"", self.0.escape_ascii()),
                    n => write!(f, "({n} bytes)"),
                }
            }
        }

        impl $crate::xdr::Encode for $name<'_> {
            fn encode(&self, out: &mut alloc::vec::Vec<u8>) {
                $crate::xdr::put_opaque(out, self.0);
            }
        }

        impl<'a> $crate::xdr::Decode<'a> for $name<'a> {
            fn decode(input: &mut $crate::xdr::Decoder<'a>) -> Result<Self, $crate::xdr::Malformed> {
                input.opaque($limit).map(Self)
            }
        }
    };
}

pub(crate) use {xdr_bytes, xdr_enum, xdr_struct};
