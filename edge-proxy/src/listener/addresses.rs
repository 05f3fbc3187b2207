//! How many connections each address has open.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use crate::rate::network_of;

/// Open connections by address (IPv6: by /64). It holds an entry for each that has one, and no other.
#[derive(Debug, Default)]
pub(crate) struct Addresses(Mutex<HashMap<IpAddr, usize>>);

/// A connection that is counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Addresses {
    /// Counts one more, unless the address has `most` already.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr, most: usize) -> Option<Seat> {
        let address = network_of(address);
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Seat { addresses: self.clone(), address })
    }

    /// How many addresses have a connection.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.addresses.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Addresses;

    #[test]
    fn each_address_has_its_seats_and_nothing_stays_of_who_left() {
        let addresses = Arc::new(Addresses::default());
        let [one, same, other] =
            ["2001:db8::1", "2001:db8::2", "192.0.2.1"].map(|text: &str| text.parse().unwrap());
        let seats = [addresses.enter(one, 2).unwrap(), addresses.enter(same, 2).unwrap()];
        assert!(addresses.enter(one, 2).is_none());
        drop(addresses.enter(other, 2).unwrap());
        drop(seats);
        assert!(addresses.0.lock().unwrap().is_empty());
        assert!(addresses.enter(one, 0).is_none());
    }
}
