package database

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
)

// LeaseFacts are what a database says of the leases that keys are attached to. HashKV covers which keys are attached to which lease, and nothing
// of how long a lease lives.
type LeaseFacts struct {
	// Attached counts leases with at least one key.
	Attached int `json:"attached"`
	// Digest is the SHA-256, in hexadecimal, of the id, the granted TTL and the number of keys of each of these, sorted by id.
	Digest string `json:"digest"`
	// Unknown are the ids of those whose TTL is UnknownLeaseTTL, in hexadecimal, at most maxUnknownNamed; Unknowns is how many there are.
	Unknown  []string `json:"unknown,omitempty"`
	Unknowns int      `json:"unknowns,omitempty"`
}

const maxUnknownNamed = 20

// leaseScan is what a pass finds of leases. Memory grows with the leases and with the keys that are attached to one.
type leaseScan struct {
	// ttls are those of all leases, attached the lease of each key by the key's hash.
	ttls     map[int64]int64
	attached map[uint64]int64
}

func newLeaseScan() leaseScan {
	return leaseScan{ttls: map[int64]int64{}, attached: map[uint64]int64{}}
}

func (l *leaseScan) see(t *keyTable, kv keyValue, deleted bool) {
	switch {
	case kv.lease != 0 && !deleted:
		l.attached[t.hashOf(kv.key)] = kv.lease
	case len(l.attached) > 0:
		delete(l.attached, t.hashOf(kv.key))
	}
}

func (l *leaseScan) facts() LeaseFacts {
	keys := map[int64]int64{}
	for _, id := range l.attached {
		keys[id]++
	}
	f := LeaseFacts{Attached: len(keys)}
	h := sha256.New()
	for _, id := range slices.Sorted(maps.Keys(keys)) {
		ttl, ok := l.ttls[id]
		if !ok {
			ttl = -1
		}
		var b []byte
		for _, n := range []int64{id, ttl, keys[id]} {
			b = binary.BigEndian.AppendUint64(b, uint64(n))
		}
		h.Write(b)
		if ttl == UnknownLeaseTTL {
			f.Unknowns++
			if len(f.Unknown) < maxUnknownNamed {
				f.Unknown = append(f.Unknown, strconv.FormatUint(uint64(id), 16))
			}
		}
	}
	f.Digest = hex.EncodeToString(h.Sum(nil))
	return f
}
