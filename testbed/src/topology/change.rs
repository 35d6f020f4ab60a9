//! A change to what a link that is up does, in the words of a topology's file.

use std::str::FromStr;

use super::check::MAX_UNDER_WAY;
use super::compile::frame;
use super::units::{Probability, Queue, Rate, Size, Time, UnitError};
use super::{Direction, Impairment};

/// A bound, or none: `unlimited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit<T> {
    /// At most this.
    To(T),
    /// As much as comes.
    Unlimited,
}

impl<T> From<Limit<T>> for Option<T> {
    fn from(limit: Limit<T>) -> Self {
        match limit {
            Limit::To(value) => Some(value),
            Limit::Unlimited => None,
        }
    }
}

impl<T: FromStr<Err = UnitError>> FromStr for Limit<T> {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text.trim() == "unlimited" { Ok(Self::Unlimited) } else { text.parse().map(Self::To) }
    }
}

/// What is to be different; the rest stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Change {
    /// Added to every frame.
    pub delay: Option<Time>,
    /// Standard deviation of the delay.
    pub jitter: Option<Time>,
    /// Bits per second.
    pub rate: Option<Limit<Rate>>,
    /// What may wait for the rate. Where it is not said but the rate or the delay is, it is one bandwidth-delay product
    /// of what they come to, as in a file.
    pub queue: Option<Limit<Queue>>,
    /// Of a frame being lost.
    pub loss: Option<Probability>,
    /// Of a frame overtaking those before it.
    pub reorder: Option<Probability>,
    /// Of a frame arriving twice.
    pub duplicate: Option<Probability>,
    /// Of a frame having a bit flipped.
    pub corrupt: Option<Probability>,
}

impl Change {
    /// What the direction that does `now` will do, on a link of this `mtu`, where `back` is the other direction's delay.
    pub fn apply(&self, now: &Impairment, back: Time, mtu: u32) -> Result<Impairment, UnitError> {
        let rate = self.rate.map_or(now.rate.map(Rate), Into::into);
        let same_queue = now.queue.map(|bytes| Queue::Bytes(Size(bytes)));
        let queue = match self.queue {
            Some(queue) => queue.into(),
            None if self.rate.is_some() || self.delay.is_some() => Some(Queue::MilliBdp(1_000)),
            None => same_queue,
        };
        let direction = Direction {
            delay: self.delay.unwrap_or(Time(now.delay)),
            jitter: self.jitter.unwrap_or(Time(now.jitter)),
            rate,
            queue: rate.and(queue),
            loss: self.loss.unwrap_or(Probability(now.loss)),
            reorder: self.reorder.unwrap_or(Probability(now.reorder)),
            duplicate: self.duplicate.unwrap_or(Probability(now.duplicate)),
            corrupt: self.corrupt.unwrap_or(Probability(now.corrupt)),
        };
        self.check(&direction, back, mtu)?;
        Ok(direction.impairment(back, mtu))
    }

    /// The rules that a file has to keep.
    fn check(&self, direction: &Direction, back: Time, mtu: u32) -> Result<(), UnitError> {
        if direction.jitter > direction.delay {
            return Err(UnitError::new(
                format!("a jitter of {} on a delay of {}", direction.jitter, direction.delay),
                "no frame can arrive before it was sent",
            ));
        }
        if direction.reorder.0 > 0.0 && direction.delay == Time::default() {
            return Err(UnitError::new(
                "reordering on a link without delay",
                "a frame overtakes those that are under way: give the link a delay",
            ));
        }
        match self.queue {
            Some(Limit::To(Queue::Bytes(size))) if size.0 < frame(mtu) => {
                return Err(UnitError::new(
                    format!("a queue of {size} cannot hold one frame"),
                    format!("a full frame of an mtu of {mtu} has {} bytes", frame(mtu)),
                ));
            }
            Some(Limit::To(_)) if direction.rate.is_none() => {
                return Err(UnitError::new(
                    "a queue on a link without a rate",
                    "nothing will ever wait in it: give the link a rate, such as --rate '10 Gbit/s'",
                ));
            }
            _ => {}
        }
        if let Some(rate) = direction.rate {
            let under_way = u128::from(rate.0) * direction.delay.0.as_nanos() / 8_000_000_000;
            let total = under_way + u128::from(direction.queue_bytes(back, mtu).unwrap_or(0));
            if total > MAX_UNDER_WAY {
                return Err(UnitError::new(
                    format!(
                        "{rate} over {} cannot be emulated: {} MB would be under way and in the queue",
                        direction.delay,
                        total / 1_000_000
                    ),
                    format!("at most {} MB", MAX_UNDER_WAY / 1_000_000),
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn wan() -> Impairment {
        crate::topology::load("wan-10g").unwrap().links[0].a_to_b.clone()
    }

    #[test]
    fn what_is_not_said_stays() {
        let change = Change { loss: Some(Probability(0.01)), ..Change::default() };
        let changed = change.apply(&wan(), Time(wan().delay), 1_500).unwrap();
        assert_eq!(changed, Impairment { loss: 0.01, ..wan() });
    }

    #[test]
    fn the_queue_follows_the_rate_unless_it_is_said() {
        let rate = Some(Limit::To("100 Mbit/s".parse().unwrap()));
        let back = Time(Duration::from_millis(25));
        let changed = Change { rate, ..Change::default() }.apply(&wan(), back, 1_500).unwrap();
        // 100 Mbit/s over 50 ms.
        assert_eq!((changed.rate, changed.queue), (Some(100_000_000), Some(625_000)));
        let queue = Some("9 kB".parse().unwrap());
        let changed = Change { rate, queue, ..Change::default() }.apply(&wan(), back, 1_500).unwrap();
        assert_eq!(changed.queue, Some(9_000));
        let rate = Some("unlimited".parse().unwrap());
        let changed = Change { rate, ..Change::default() }.apply(&wan(), back, 1_500).unwrap();
        assert_eq!((changed.rate, changed.queue), (None, None));
    }

    #[test]
    fn what_a_file_may_not_say_is_refused() {
        let now = Impairment::default();
        let refused = |change: Change| change.apply(&now, Time::default(), 1_500).unwrap_err().message;
        let jitter = Some("1 ms".parse().unwrap());
        assert!(refused(Change { jitter, ..Change::default() }).contains("jitter of 1 ms on a delay of 0"));
        let reorder = Some(Probability(0.5));
        assert!(refused(Change { reorder, ..Change::default() }).contains("without delay"));
        let queue: Option<Limit<Queue>> = Some("100 kB".parse().unwrap());
        assert!(refused(Change { queue, ..Change::default() }).contains("without a rate"));
        let (rate, delay) = (Some("1 Tbit/s".parse().unwrap()), Some("100 s".parse().unwrap()));
        assert!(refused(Change { rate, delay, ..Change::default() }).contains("cannot be emulated"));
    }
}
