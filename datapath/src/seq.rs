//! Sequence numbers: 32 bits on a subflow (RFC 9293 §3.4), 64 bits at data level (RFC 8684 §3.3).
//! Comparisons are modulo the space: `a.before(b)` means `a < b` where the distance is under half
//! of it. There is no `Ord`: a total order would be a lie.

/// The rules for either space; containers that serve both are generic over it.
pub trait Sequence: Copy + Eq + std::fmt::Debug {
    /// `self - earlier`, negative if `self` is before it.
    fn offset_from(self, earlier: Self) -> i64;

    /// The number `octets` after `self`.
    fn offset_by(self, octets: usize) -> Self;

    /// Octets from `earlier` to `self`; the caller knows that `self` is not before it.
    fn distance(self, earlier: Self) -> usize {
        debug_assert!(!self.before(earlier), "{self:?} is before {earlier:?}");
        self.offset_from(earlier) as usize
    }

    fn before(self, other: Self) -> bool {
        self.offset_from(other) < 0
    }

    fn after(self, other: Self) -> bool {
        self.offset_from(other) > 0
    }

    fn at_or_before(self, other: Self) -> bool {
        !self.after(other)
    }

    fn at_or_after(self, other: Self) -> bool {
        !self.before(other)
    }

    fn max(self, other: Self) -> Self {
        if self.before(other) { other } else { self }
    }

    fn min(self, other: Self) -> Self {
        if self.after(other) { other } else { self }
    }
}

/// A type with what depends on its width. Its methods are those of [`Sequence`], for callers without the
/// trait; the rules are not here because mutation testing does not look into macros.
macro_rules! sequence {
    ($name:ident, $unsigned:ty, $signed:ty, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub $unsigned);

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

        impl Sequence for $name {
            fn offset_from(self, earlier: $name) -> i64 {
                i64::from(self.offset_from(earlier))
            }

            fn offset_by(self, octets: usize) -> $name {
                self + octets
            }
        }

        impl $name {
            /// `self - earlier`, negative if `self` is before it.
            pub const fn offset_from(self, earlier: $name) -> $signed {
                self.0.wrapping_sub(earlier.0) as $signed
            }

            pub fn distance(self, earlier: $name) -> usize {
                Sequence::distance(self, earlier)
            }

            pub fn before(self, other: $name) -> bool {
                Sequence::before(self, other)
            }

            pub fn after(self, other: $name) -> bool {
                Sequence::after(self, other)
            }

            pub fn at_or_before(self, other: $name) -> bool {
                Sequence::at_or_before(self, other)
            }

            pub fn at_or_after(self, other: $name) -> bool {
                Sequence::at_or_after(self, other)
            }

            pub fn max(self, other: $name) -> $name {
                Sequence::max(self, other)
            }

            pub fn min(self, other: $name) -> $name {
                Sequence::min(self, other)
            }
        }
    };
}

sequence!(TcpSeq, u32, i32, "A sequence number of one subflow.");
sequence!(
    DataSeq,
    u64,
    i64,
    "A data sequence number of a Multipath TCP connection."
);

impl DataSeq {
    /// The 64-bit number nearest to `self` whose low 32 bits are `low`
    /// (RFC 8684 §3.3.1: 4-octet values are expanded against what is known).
    pub const fn expand(self, low: u32) -> DataSeq {
        let distance = low.wrapping_sub(self.0 as u32) as i32;
        DataSeq(self.0.wrapping_add(distance as i64 as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn comparison_goes_round_the_end_of_the_space() {
        let last = TcpSeq(u32::MAX);
        assert!(last.before(last + 1) && (last + 1).after(last));
        assert_eq!(last + 1, TcpSeq(0));
        assert_eq!(TcpSeq(4) - 5, last);
        assert_eq!((last + 10).distance(last), 10);
        assert_eq!(last.max(TcpSeq(3)), TcpSeq(3));
        assert_eq!(last.min(TcpSeq(3)), last);
        let last = DataSeq(u64::MAX);
        assert!(last.before(last + 1) && last.at_or_before(last) && last.at_or_after(last));
        assert_eq!(last.max(DataSeq(3)), DataSeq(3));
    }

    #[test]
    fn expand_takes_the_nearest_number_up_to_half_the_low_space() {
        let base = DataSeq(0x5_0000_0000);
        let low = |d: i64| base.0.wrapping_add_signed(d) as u32;
        let half = 1i64 << 31;
        assert_eq!(base.expand(low(half - 1)), base + (half as usize - 1));
        assert_eq!(base.expand(low(1 - half)), base - (half as usize - 1));
        // At exactly half the distance both are as near; the earlier one is taken, as
        // `TcpSeq::before` does.
        assert_eq!(base.expand(low(half)), base - half as usize);
        // Round the end of the 64-bit space, both ways.
        assert_eq!(DataSeq(u64::MAX).expand(0), DataSeq(0));
        assert_eq!(DataSeq(0).expand(u32::MAX), DataSeq(u64::MAX));
    }

    proptest! {
        #[test]
        fn expand_gives_back_what_was_cut(base: u64, d in -(1i64 << 31)..(1i64 << 31)) {
            let full = base.wrapping_add_signed(d);
            prop_assert_eq!(DataSeq(base).expand(full as u32), DataSeq(full));
        }

        #[test]
        fn order_follows_the_distance(a: u32, d in 1u32..(1 << 31)) {
            let (a, b) = (TcpSeq(a), TcpSeq(a) + d as usize);
            prop_assert!(a.before(b) && b.after(a) && !b.before(a));
            prop_assert!(a.at_or_before(b) && b.at_or_after(a));
            prop_assert_eq!(b.distance(a), d as usize);
            prop_assert_eq!((a.min(b), a.max(b)), (a, b));
            // The common trait agrees with the type's own methods.
            prop_assert_eq!(Sequence::offset_from(b, a), i64::from(d));
            prop_assert_eq!(Sequence::offset_by(a, d as usize), b);
        }
    }
}
