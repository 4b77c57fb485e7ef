//! The agreement: which server should own which partition. Pure.
//!
//! Rendezvous hashing with a capacity: every pair of server and partition has a score, and partitions go to their best
//! server that has room. Invariants: all that know the same servers agree, in whatever order they heard of them; the
//! numbers of partitions that servers own differ by at most one.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

/// One run of one server process.
pub(super) type ServerId = Uuid;

/// Who should own what, as one server sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreement {
    me: ServerId,
    servers: BTreeSet<ServerId>,
    owners: Vec<ServerId>,
    left_out: usize,
}

impl Agreement {
    /// What `me` and `peers` agree on.
    pub(super) fn new(
        me: ServerId,
        peers: impl IntoIterator<Item = ServerId>,
        partitions: u16,
    ) -> Self {
        let servers: BTreeSet<_> = peers.into_iter().chain([me]).collect();
        let owners = assign(&servers, partitions);
        Self {
            me,
            // A partition without an owner cannot be; if it could, everyone would consume it.
            owners: (0..partitions)
                .map(|partition| owners.get(&partition).copied().unwrap_or(me))
                .collect(),
            servers,
            left_out: 0,
        }
    }

    /// The same, with `left_out` servers that announce themselves and are not there.
    pub(super) fn leaving_out(self, left_out: usize) -> Self {
        Self { left_out, ..self }
    }

    /// Whether other servers share the partitions than in `before`.
    pub(super) fn is_other_than(&self, before: &Self) -> bool {
        self.servers != before.servers
    }

    /// Who should own `partition`.
    pub(super) fn owner(&self, partition: u16) -> ServerId {
        let owner = self.owners.get(usize::from(partition));
        owner.copied().unwrap_or(self.me)
    }

    /// Whether this server should own `partition`.
    pub(super) fn is_mine(&self, partition: u16) -> bool {
        self.owner(partition) == self.me
    }

    /// The partitions that this server should own.
    pub fn owned(&self) -> Vec<u16> {
        (0..)
            .zip(&self.owners)
            .filter(|(_, owner)| **owner == self.me)
            .map(|(partition, _)| partition)
            .collect()
    }

    /// Whether `server` is one of those that share the partitions.
    pub(super) fn counts(&self, server: ServerId) -> bool {
        self.servers.contains(&server)
    }

    /// How many announce themselves as servers and are not there: they own nothing.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// How many servers share the partitions, this one included.
    pub fn servers(&self) -> usize {
        self.servers.len()
    }
}

/// Goes through the pairs by score; takes each whose partition is free and whose server has room. As many servers as the
/// division leaves a remainder have room for one more: those that come to it first.
fn assign(servers: &BTreeSet<ServerId>, partitions: u16) -> BTreeMap<u16, ServerId> {
    let mut pairs: Vec<_> = servers
        .iter()
        .flat_map(|server| (0..partitions).map(move |p| (score(*server, p), *server, p)))
        .collect();
    pairs.sort_unstable();
    let share = usize::from(partitions) / servers.len().max(1);
    let mut larger_left = usize::from(partitions) % servers.len().max(1);
    let mut owners = BTreeMap::new();
    let mut loads: BTreeMap<ServerId, usize> = BTreeMap::new();
    for (_, server, partition) in pairs.into_iter().rev() {
        let load = loads.entry(server).or_default();
        let is_larger = *load == share;
        if owners.contains_key(&partition) || *load > share || (is_larger && larger_left == 0) {
            continue;
        }
        larger_left -= usize::from(is_larger);
        *load += 1;
        owners.insert(partition, server);
    }
    owners
}

/// The same on every machine and in every version.
fn score(server: ServerId, partition: u16) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(server.as_bytes());
    hasher.update(&partition.to_be_bytes());
    let mut first = [0; 8];
    hasher.finalize_xof().fill(&mut first);
    u64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(seeds: &BTreeSet<u128>) -> Vec<ServerId> {
        seeds.iter().map(|seed| Uuid::from_u128(*seed)).collect()
    }

    fn moved(one: &Agreement, other: &Agreement) -> usize {
        let pairs = one.owners.iter().zip(&other.owners);
        pairs.filter(|(a, b)| a != b).count()
    }

    proptest! {
        /// Every server sees the same owners, each partition has one, and no server has two more than another.
        #[test]
        fn all_agree_and_share_evenly(seeds in prop::collection::btree_set(any::<u128>(), 1..12), partitions in 1..=64_u16) {
            let ids = ids(&seeds);
            let views: Vec<_> = ids.iter().map(|me| Agreement::new(*me, ids.iter().rev().copied(), partitions)).collect();
            prop_assert!(views.iter().all(|view| view.owners == views[0].owners));
            let sizes: Vec<_> = views.iter().map(|view| view.owned().len()).collect();
            prop_assert_eq!(sizes.iter().sum::<usize>(), usize::from(partitions));
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{:?}", sizes);
        }

        /// Alone, a server owns everything.
        #[test]
        fn one_server_owns_all(seed: u128, partitions in 1..=256_u16) {
            let alone = Agreement::new(Uuid::from_u128(seed), [], partitions);
            prop_assert_eq!(alone.owned(), (0..partitions).collect::<Vec<_>>());
        }
    }

    /// Goal: a server that comes or goes moves little more than its own share. The capacity makes some others move
    /// too; over many fleets the mean stays under 1.6 shares, where a plain modulo moves almost everything.
    #[test]
    fn joining_and_leaving_move_little() {
        let (mut total, mut shares) = (0, 0);
        for seed in 0..200_u128 {
            let servers = 1 + (seed % 8);
            let partitions = 64;
            let peers = (0..servers).map(|n| Uuid::from_u128(seed << 64 | n << 8 | 1));
            let joined = Uuid::from_u128(seed << 64 | 0xffff);
            let before = Agreement::new(joined, peers.clone(), partitions);
            let me = peers.clone().next().unwrap();
            let without = Agreement::new(me, peers, partitions);
            total += moved(&before, &without);
            shares += before.owned().len();
        }
        assert!(total * 10 <= shares * 16, "{total} moved for {shares}");
    }
}
