//! Events in the form of EVENTINJ and EXITINTINFO (APM vol. 2, 15.20 and 15.7.2).

use machine::vcpu::Event;

const TYPE_SHIFT: u32 = 8;
const TYPE_MASK: u64 = 7 << TYPE_SHIFT;
const TYPE_INTERRUPT: u64 = 0 << TYPE_SHIFT;
const TYPE_NMI: u64 = 2 << TYPE_SHIFT;
const TYPE_EXCEPTION: u64 = 3 << TYPE_SHIFT;
const ERROR_VALID: u64 = 1 << 11;
const VALID: u64 = 1 << 31;
const NMI_VECTOR: u64 = 2;
const VECTOR_BP: u8 = 3;
const VECTOR_OF: u8 = 4;

/// The word that injects an event.
pub fn encode(event: Event) -> u64 {
    VALID
        | match event {
            Event::Interrupt(vector) => TYPE_INTERRUPT | u64::from(vector),
            Event::Nmi => TYPE_NMI | NMI_VECTOR,
            Event::Exception { vector, error } => {
                // A vector that is no exception would be refused (APM vol. 2, 15.20).
                let base = TYPE_EXCEPTION | u64::from(vector & 31);
                match error {
                    Some(code) => base | ERROR_VALID | u64::from(code) << 32,
                    None => base,
                }
            }
        }
}

/// The event in an EVENTINJ or EXITINTINFO word, if it holds one that has to be injected again.
///
/// A software interrupt (INT n, INT3, INTO) has not moved RIP when its delivery is cut short: the
/// instruction raises it again by itself. Without the valid bit the word is stale.
pub fn decode(word: u64) -> Option<Event> {
    if word & VALID == 0 {
        return None;
    }
    let vector = word as u8;
    match word & TYPE_MASK {
        TYPE_INTERRUPT => Some(Event::Interrupt(vector)),
        TYPE_NMI => Some(Event::Nmi),
        TYPE_EXCEPTION if vector != VECTOR_BP && vector != VECTOR_OF => Some(Event::Exception {
            vector,
            error: (word & ERROR_VALID != 0).then_some((word >> 32) as u32),
        }),
        _ => None,
    }
}
