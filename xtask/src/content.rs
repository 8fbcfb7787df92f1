//! Reproducible bytes that look random, and their hashes.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

const CHUNK: usize = 64 * 1024;

/// A stream of bytes given by its seed (xorshift64*).
#[derive(Clone)]
pub(crate) struct Pattern {
    state: u64,
    pending: [u8; 8],
    used: usize,
}

impl Pattern {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            // Zero is the generator's fixed point.
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            pending: [0; 8],
            used: 8,
        }
    }

    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        let mut rest = buffer;
        while !rest.is_empty() {
            if self.used == 8 {
                self.pending = self.next().to_le_bytes();
                self.used = 0;
            }
            let length = rest.len().min(8 - self.used);
            let (head, tail) = rest.split_at_mut(length);
            head.copy_from_slice(&self.pending[self.used..self.used + length]);
            self.used += length;
            rest = tail;
        }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Writes a file of pattern bytes; its SHA-256.
pub(crate) fn make_file(path: &Path, bytes: u64, seed: u64) -> Result<String, String> {
    let fail = |error| format!("cannot write {}: {error}", path.display());
    let mut file = BufWriter::new(File::create(path).map_err(fail)?);
    let mut pattern = Pattern::new(seed);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let part = &mut buffer[..CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
        pattern.fill(part);
        hash.update(&*part);
        file.write_all(part).map_err(fail)?;
        left -= part.len() as u64;
    }
    file.flush().map_err(fail)?;
    Ok(hex(hash))
}

pub(crate) fn hash_file(path: &Path) -> Result<String, String> {
    let fail = |error| format!("cannot read {}: {error}", path.display());
    let mut file = File::open(path).map_err(fail)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer).map_err(fail)? {
            0 => return Ok(hex(hash)),
            length => hash.update(&buffer[..length]),
        }
    }
}

pub(crate) fn hex(hash: Sha256) -> String {
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_does_not_depend_on_how_it_is_cut() {
        let mut whole = vec![0; 1000];
        Pattern::new(7).fill(&mut whole);
        let mut pieces = vec![0; 1000];
        let mut pattern = Pattern::new(7);
        for piece in pieces.chunks_mut(13) {
            pattern.fill(piece);
        }
        assert_eq!(whole, pieces);
        let mut other = vec![0; 1000];
        Pattern::new(8).fill(&mut other);
        assert_ne!(whole, other);
    }
}
