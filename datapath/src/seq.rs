//! Sequence numbers: 32 bits on a subflow (RFC 9293 §3.4), 64 bits at data level (RFC 8684 §3.3).
//! Comparisons are modulo the space: `a.before(b)` means `a < b` where the distance is under half
//! of it. There is no `Ord`: a total order would be a lie.

macro_rules! sequence {
    ($name:ident, $unsigned:ty, $signed:ty, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub $unsigned);

        impl $name {
            /// `self - earlier`, negative if `self` is before it.
            pub const fn offset_from(self, earlier: $name) -> $signed {
                self.0.wrapping_sub(earlier.0) as $signed
            }

            /// Octets from `earlier` to `self`; the caller knows that `self` is not before it.
            pub fn distance(self, earlier: $name) -> usize {
                debug_assert!(!self.before(earlier), "{self:?} is before {earlier:?}");
                self.0.wrapping_sub(earlier.0) as usize
            }

            pub const fn before(self, other: $name) -> bool {
                self.offset_from(other) < 0
            }

            pub const fn after(self, other: $name) -> bool {
                self.offset_from(other) > 0
            }

            pub const fn at_or_before(self, other: $name) -> bool {
                !self.after(other)
            }

            pub const fn at_or_after(self, other: $name) -> bool {
                !self.before(other)
            }

            pub const fn max(self, other: $name) -> $name {
                if self.before(other) { other } else { self }
            }

            pub const fn min(self, other: $name) -> $name {
                if self.after(other) { other } else { self }
            }
        }

        impl std::ops::Add<usize> for $name {
            type Output = $name;
            fn add(self, rhs: usize) -> $name {
                $name(self.0.wrapping_add(rhs as $unsigned))
            }
        }

        impl std::ops::Sub<usize> for $name {
            type Output = $name;
            fn sub(self, rhs: usize) -> $name {
                $name(self.0.wrapping_sub(rhs as $unsigned))
            }
        }

        impl std::ops::AddAssign<usize> for $name {
            fn add_assign(&mut self, rhs: usize) {
                *self = *self + rhs;
            }
        }
    };
}

sequence!(TcpSeq, u32, i32, "A sequence number of one subflow.");
sequence!(DataSeq, u64, i64, "A data sequence number of a Multipath TCP connection.");

impl DataSeq {
    /// The 64-bit number nearest to `self` whose low 32 bits are `low`
    /// (RFC 8684 §3.3.1: 4-octet values are expanded against what is known).
    pub const fn expand(self, low: u32) -> DataSeq {
        let distance = low.wrapping_sub(self.0 as u32) as i32;
        DataSeq(self.0.wrapping_add(distance as i64 as u64))
    }
}
