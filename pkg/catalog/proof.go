package catalog

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// Files that are added to a backup after it was taken. Their names alone tell what they say, so that a listing is enough.
const (
	pinFile       = "_etcd_manager_pin.json"
	provenFile    = "_etcd_manager_proven.json"
	disprovenFile = "_etcd_manager_disproven.json"

	pinVersion   = 1
	proofVersion = 1
	pinWay       = "unpin the backup and pin it again: etcd-manager-ctl unpin-backup, pin-backup"
	proofWay     = "delete the object; the next verification writes it again"
)

// Pin says why a backup is kept for ever.
type Pin struct {
	At time.Time `json:"at"`
	// Reason is the operator's own note.
	Reason string `json:"reason,omitempty"`
	// Owner names the command that keeps the backup while it runs, and removes this pin and no other; empty for one that stays until it is
	// removed.
	Owner string `json:"owner,omitempty"`
}

type pinJSON struct {
	Version int `json:"version"`
	Pin
}

// PinBackup keeps a backup from ever being pruned. Pinning it again replaces the reason.
func (c *Catalog) PinBackup(ctx context.Context, name, reason string) error {
	if err := ValidBackupName(name); err != nil {
		return err
	}
	data, err := encodeOwn(pinJSON{Version: pinVersion, Pin: Pin{At: c.now().UTC(), Reason: reason}})
	if err != nil {
		return err
	}
	_, err = c.write(ctx, name+"/"+pinFile, data, blob.PutOptions{})
	return err
}

// HoldBackup keeps a backup from being pruned until release is called. A backup that is pinned already is left as it is. release removes
// this pin only: one that somebody has put in its place meanwhile stays.
func (c *Catalog) HoldBackup(ctx context.Context, name, reason string) (release func(context.Context) error, err error) {
	if err := ValidBackupName(name); err != nil {
		return nil, err
	}
	owner := rand.Text()
	data, err := encodeOwn(pinJSON{Version: pinVersion, Pin: Pin{At: c.now().UTC(), Reason: reason, Owner: owner}})
	if err != nil {
		return nil, err
	}
	_, err = c.write(ctx, name+"/"+pinFile, data, blob.PutOptions{IfAbsent: true})
	if errors.Is(err, ErrConflict) {
		if p, err := c.Pin(ctx, name); err != nil || p.Owner != owner { // else the answer to the first attempt was lost
			return func(context.Context) error { return nil }, nil
		}
		err = nil
	}
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		p, err := c.Pin(ctx, name)
		if errors.Is(err, ErrNotFound) || err == nil && p.Owner != owner {
			return nil
		}
		if err != nil {
			return err
		}
		return c.removeFile(ctx, name+"/"+pinFile)
	}, nil
}

// UnpinBackup lets retention decide about a backup again. One that isn't pinned is a success.
func (c *Catalog) UnpinBackup(ctx context.Context, name string) error {
	if err := ValidBackupName(name); err != nil {
		return err
	}
	return c.removeFile(ctx, name+"/"+pinFile)
}

// Pin reads why a backup is pinned; ErrNotFound if it isn't.
func (c *Catalog) Pin(ctx context.Context, name string) (Pin, error) {
	if err := ValidBackupName(name); err != nil {
		return Pin{}, err
	}
	key := name + "/" + pinFile
	data, _, err := c.read(ctx, key, pinWay)
	if err != nil {
		return Pin{}, err
	}
	var j pinJSON
	if err := decodeOwn(key, pinWay, data, pinVersion, &j); err != nil {
		return Pin{}, err
	}
	return j.Pin, nil
}

// ProofOutcome says what a proof has found.
type ProofOutcome string

// The outcomes.
const (
	Proven    ProofOutcome = "proven"
	Disproven ProofOutcome = "disproven"
)

// Proof is what was found when a backup was tried out: restored, and compared with what its changes say it must be.
type Proof struct {
	At      time.Time    `json:"at"`
	Outcome ProofOutcome `json:"outcome"`
	// Base is the backup from which the changes were replayed, Segments how many it took; Base is empty if the backup was only read.
	Base     string `json:"base,omitempty"`
	Segments int    `json:"segments,omitempty"`
	// Incarnation, Revision and Hash (etcd's HashKV) are of the proven data.
	Incarnation Incarnation `json:"incarnation,omitempty"`
	Revision    int64       `json:"revision,omitempty"`
	Hash        uint32      `json:"hashKV,omitempty"`
	// Duration is how long it took; in the file in nanoseconds.
	Duration time.Duration `json:"durationNanos,omitempty"`
	// Error says what was wrong, if anything was.
	Error       string `json:"error,omitempty"`
	ToolVersion string `json:"toolVersion,omitempty"`
}

type proofJSON struct {
	Version int    `json:"version"`
	Backup  string `json:"backup"`
	Proof
}

func proofFile(o ProofOutcome) (file, other string, err error) {
	switch o {
	case Proven:
		return provenFile, disprovenFile, nil
	case Disproven:
		return disprovenFile, provenFile, nil
	}
	return "", "", invalidf("write verification: outcome %q is neither %s nor %s", o, Proven, Disproven)
}

// PutProof records what a proof has found, in the place of an earlier one. While both outcomes stand there, in between, the bad one counts.
func (c *Catalog) PutProof(ctx context.Context, name string, p Proof) error {
	if err := ValidBackupName(name); err != nil {
		return err
	}
	file, other, err := proofFile(p.Outcome)
	if err != nil {
		return err
	}
	data, err := encodeOwn(proofJSON{Version: proofVersion, Backup: name, Proof: p})
	if err != nil {
		return err
	}
	if _, err := c.write(ctx, name+"/"+file, data, blob.PutOptions{}); err != nil {
		return err
	}
	return c.removeFile(ctx, name+"/"+other)
}

// Proof reads what the last proof of a backup has found; ErrNotFound if it was never tried.
func (c *Catalog) Proof(ctx context.Context, name string) (Proof, error) {
	if err := ValidBackupName(name); err != nil {
		return Proof{}, err
	}
	for _, o := range []ProofOutcome{Disproven, Proven} {
		file, _, err := proofFile(o)
		if err != nil {
			return Proof{}, err
		}
		key := name + "/" + file
		data, _, err := c.read(ctx, key, proofWay)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return Proof{}, err
		}
		var j proofJSON
		if err := decodeOwn(key, proofWay, data, proofVersion, &j); err != nil {
			return Proof{}, err
		}
		if j.Backup != name || j.Outcome != o {
			return Proof{}, corrupt(key, proofWay, fmt.Errorf("it is the verification of backup %q, %s", j.Backup, j.Outcome))
		}
		return j.Proof, nil
	}
	return Proof{}, fmt.Errorf("read verification of %s: %w", name, ErrNotFound)
}

// remove deletes what is no backup and no change. What the store has under lock is hidden.
func (c *Catalog) remove(ctx context.Context, prefix string, match func(key string) bool) (int, error) {
	return blob.Remove(ctx, c.store, prefix, match)
}

// removeFile deletes one object with all its versions. One that is gone is a success.
func (c *Catalog) removeFile(ctx context.Context, key string) error {
	if _, err := c.remove(ctx, key, func(k string) bool { return k == key }); err != nil {
		return fmt.Errorf("remove %s: %w", key, err)
	}
	return nil
}
