//! Sifts what RabbitMQ sends, frame by frame: a frame that lapin cannot read is rewritten before it gets there. Pure.
//!
//! Bytes come in pieces of any size. Almost all pass unchanged and uncopied. A frame that must be inspected is held until it
//! is whole; of a header, at most the first [`HELD_BYTES_MAX`] bytes. Invariant: the frames that went in come out, in their
//! order, each as it was or as one that lapin reads.

use super::content_header::{self, Bytes, lossy_short};

/// Type, channel and size, in front of a frame's payload.
const HEAD_BYTES: usize = 1 + 2 + 4;
/// What a frame has beside its payload: the head, and the byte that ends it.
const FRAME_BYTES: usize = HEAD_BYTES + 1;
/// This many bytes show what a frame is: for a method, they include its class and number.
const SIGHT_BYTES: usize = HEAD_BYTES + 4;
/// The smallest frame limit that the protocol allows.
const FRAME_BYTES_MIN: usize = 4_096;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xce;
const TUNE: [u8; 4] = [0, 10, 0, 30];
const DELIVER: [u8; 4] = [0, 60, 0, 60];
/// Most bytes held of one frame: of a larger content header only the beginning is inspected. RabbitMQ takes none above
/// its `frame_max`, which is 131,072 unless somebody raised it.
pub(crate) const HELD_BYTES_MAX: usize = 262_144;

/// The frames of one connection.
#[derive(Debug)]
pub(crate) struct Sieve {
    /// The largest frame that lapin takes; 0 for any.
    frame_max: usize,
    /// Bytes that come out before anything that comes in.
    ready: Vec<u8>,
    /// The beginning of a frame that must be inspected.
    held: Vec<u8>,
    /// Bytes of that frame that were not kept.
    dropped: usize,
    /// Bytes of the current frame that still go through as they are.
    passing: usize,
    rewritten: u64,
}

/// What to do about a frame; the number is its whole size in bytes.
#[derive(Debug, Clone, Copy)]
enum Sight {
    Unclear,
    Pass(usize),
    Look(usize),
}

impl Sieve {
    /// `frame_max` is what we ask for; the broker may ask for less.
    pub(crate) fn new(frame_max: u32) -> Self {
        Self {
            frame_max: usize::try_from(frame_max).unwrap_or(usize::MAX),
            ready: Vec::new(),
            held: Vec::new(),
            dropped: 0,
            passing: 0,
            rewritten: 0,
        }
    }

    /// How many messages were rewritten so far.
    pub(crate) fn rewritten(&self) -> u64 {
        self.rewritten
    }

    /// Bytes that come out first. They must be taken before the next [`sift`](Self::sift).
    pub(crate) fn ready(&mut self) -> &mut Vec<u8> {
        &mut self.ready
    }

    /// Takes in the next piece, and says how many of its first bytes come out unchanged. Whatever else comes out is in
    /// [`ready`](Self::ready).
    pub(crate) fn sift(&mut self, piece: &[u8]) -> usize {
        let (mut rest, mut passed) = (piece, 0);
        while !rest.is_empty() {
            let step = if self.passing > 0 {
                let step = self.passing.min(rest.len());
                self.passing -= step;
                self.pass(rest, step, &mut passed);
                step
            } else if self.held.is_empty() {
                self.begin(rest, &mut passed)
            } else {
                self.hold(rest)
            };
            rest = rest.get(step..).unwrap_or_default();
        }
        passed
    }

    /// Lets the first `count` bytes through: in place, unless something must come out before them.
    fn pass(&mut self, bytes: &[u8], count: usize, passed: &mut usize) {
        if self.ready.is_empty() {
            *passed += count;
        } else {
            self.ready.extend(bytes.get(..count).unwrap_or_default());
        }
    }

    /// Looks at the frame that `rest` begins with; says how much of it is dealt with.
    fn begin(&mut self, rest: &[u8], passed: &mut usize) -> usize {
        let size = match sight(rest) {
            Sight::Pass(size) => {
                self.passing = size;
                return 0;
            }
            Sight::Look(size) if rest.len() >= size => size,
            Sight::Look(_) | Sight::Unclear => return self.hold(rest),
        };
        match self.look(rest.get(..size).unwrap_or_default(), size) {
            None => self.pass(rest, size, passed),
            Some(frame) => self.ready.extend(frame),
        }
        size
    }

    /// Holds more of a frame; says how much of `rest` was taken.
    fn hold(&mut self, rest: &[u8]) -> usize {
        let wanted = match sight(&self.held) {
            // One by one: what comes behind a short frame is not part of it.
            Sight::Unclear => 1,
            Sight::Pass(size) => {
                self.passing = size.saturating_sub(self.held.len());
                self.ready.append(&mut self.held);
                return 0;
            }
            Sight::Look(size) => size - self.held.len() - self.dropped,
        };
        let taken = wanted.min(rest.len());
        let room = HELD_BYTES_MAX.saturating_sub(self.held.len());
        let kept = taken.min(room);
        self.held.extend(rest.get(..kept).unwrap_or_default());
        self.dropped += taken - kept;
        self.release();
        taken
    }

    /// Lets out what is held, if it is whole.
    fn release(&mut self) {
        let size = match sight(&self.held) {
            Sight::Look(size) if self.held.len() + self.dropped == size => size,
            _ => return,
        };
        self.dropped = 0;
        let held = std::mem::take(&mut self.held);
        let frame = self.look(&held, size);
        self.ready.extend(frame.unwrap_or(held));
    }

    /// A frame to replace this one of `whole` bytes, if lapin cannot read it.
    fn look(&mut self, frame: &[u8], whole: usize) -> Option<Vec<u8>> {
        let (head, rest) = frame.split_at_checked(HEAD_BYTES)?;
        let payload = rest.get(..rest.len().min(whole - FRAME_BYTES))?;
        let payload = match head.first()? {
            &HEADER => {
                let is_small = self.frame_max == 0 || whole <= self.frame_max;
                if is_small && content_header::is_readable(payload) {
                    return None;
                }
                let room = match self.frame_max {
                    0 => whole,
                    frame_max => frame_max,
                };
                let room = room.max(FRAME_BYTES_MIN) - FRAME_BYTES;
                content_header::rewrite(payload, whole - FRAME_BYTES, room)
            }
            _ if payload.starts_with(&TUNE) => {
                self.tune(payload);
                return None;
            }
            _ => deliver(payload)?,
        };
        self.rewritten += 1;
        let mut frame = head.get(..HEAD_BYTES - 4)?.to_vec();
        frame.extend(
            u32::try_from(payload.len())
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        );
        frame.extend(payload);
        frame.push(FRAME_END);
        Some(frame)
    }

    /// lapin takes the smaller one of what both sides ask for.
    fn tune(&mut self, payload: &[u8]) {
        let mut rest = Bytes(payload);
        rest.take(TUNE.len() + 2);
        let theirs = rest.u32().unwrap_or(0);
        self.frame_max = match (self.frame_max, theirs) {
            (0, only) | (only, 0) => only,
            (ours, theirs) => ours.min(theirs),
        };
    }
}

/// What to do about the frame that `bytes` begin with.
fn sight(bytes: &[u8]) -> Sight {
    let mut rest = Bytes(bytes);
    let head = (rest.take(3).and_then(<[u8]>::first), rest.u32());
    let (kind, size) = match head {
        (Some(kind), Some(size)) => (*kind, size.saturating_add(FRAME_BYTES)),
        (Some(kind), None) if !matches!(*kind, METHOD | HEADER | BODY | HEARTBEAT) => (0, 0),
        _ => return Sight::Unclear,
    };
    match (kind, rest.0.get(..4)) {
        (HEADER, _) => Sight::Look(size),
        (METHOD, Some(method)) if method == TUNE || method == DELIVER => Sight::Look(size),
        (METHOD, None) if size >= SIGHT_BYTES => Sight::Unclear,
        (METHOD | BODY | HEARTBEAT, _) => Sight::Pass(size),
        // These are no frames: lapin gets them as they are.
        _ => Sight::Pass(usize::MAX),
    }
}

/// The delivery with its exchange and routing key made text; none if they are text already.
fn deliver(payload: &[u8]) -> Option<Vec<u8>> {
    let mut rest = Bytes(payload);
    rest.take(DELIVER.len())?;
    rest.short()?;
    // The delivery's tag, and whether it is redelivered.
    rest.take(8 + 1)?;
    let before = payload.len() - rest.0.len();
    let (exchange, routing_key) = (rest.short()?, rest.short()?);
    if [exchange, routing_key]
        .into_iter()
        .all(|text| std::str::from_utf8(text).is_ok())
    {
        return None;
    }
    let mut payload = payload.get(..before)?.to_vec();
    for text in [exchange, routing_key] {
        let text = lossy_short(text);
        payload.push(u8::try_from(text.len()).unwrap_or(0));
        payload.extend(text.as_bytes());
    }
    payload.extend(rest.0);
    Some(payload)
}

#[cfg(test)]
mod tests;
