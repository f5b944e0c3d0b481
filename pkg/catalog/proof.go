package catalog

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
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
	// Also are other commands that keep the backup at the same time.
	Also []string `json:"also,omitempty"`
	// Ending is when the last of them began to remove the pin: the stores know no conditional delete, so whoever wants to keep the backup
	// waits until it is gone.
	Ending time.Time `json:"ending,omitzero"`
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
	for range holdTries {
		_, version, err := c.settledPin(ctx, name)
		p := Pin{At: c.now().UTC(), Reason: reason}
		switch {
		case errors.Is(err, ErrNotFound):
			err = c.putPin(ctx, name, p, blob.PutOptions{IfAbsent: true})
		case errors.Is(err, errEnding):
			return err
		case err != nil || version == "": // one that can't be read is replaced
			return c.putPin(ctx, name, p, blob.PutOptions{})
		default:
			err = c.putPin(ctx, name, p, blob.PutOptions{IfVersion: version})
		}
		if errors.Is(err, blob.ErrInvalid) { // a store that refuses conditions
			return c.putPin(ctx, name, p, blob.PutOptions{})
		}
		if !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("pin backup %s: %w", name, errBusy)
}

func (c *Catalog) putPin(ctx context.Context, name string, p Pin, o blob.PutOptions) error {
	data, err := encodeOwn(pinJSON{Version: pinVersion, Pin: p})
	if err != nil {
		return err
	}
	_, err = c.write(ctx, name+"/"+pinFile, data, o)
	return err
}

const (
	// maxOwners bounds how many commands keep a backup at the same time.
	maxOwners = 16
	// holdTries is how often one tries to be noted beside others, and endingPause how long it waits for one that removes the pin. One that
	// hasn't removed it within endingTakes has ended.
	holdTries, endingPause, endingTakes = 40, 100 * time.Millisecond, time.Minute
)

var (
	errBusy   = errors.New("its pin changes all the time; try again")
	errEnding = errors.New("another command is about to remove its pin; try again in a minute")
)

// HoldBackup keeps a backup from being pruned until release is called, whoever else keeps it too. A backup that an operator has pinned is
// left as it is. release removes this hold only: those of other commands stay, and a pin that somebody has put in their place.
func (c *Catalog) HoldBackup(ctx context.Context, name, reason string) (release func(context.Context) error, err error) {
	if err := ValidBackupName(name); err != nil {
		return nil, err
	}
	mine := Pin{At: c.now().UTC(), Reason: reason, Owner: rand.Text()}
	release = func(ctx context.Context) error { return c.releaseBackup(ctx, name, mine.Owner) }
	for range holdTries {
		err := c.putPin(ctx, name, mine, blob.PutOptions{IfAbsent: true})
		if !errors.Is(err, ErrConflict) {
			return release, err
		}
		p, version, err := c.settledPin(ctx, name)
		switch {
		case errors.Is(err, ErrNotFound):
			continue // gone meanwhile
		case errors.Is(err, errEnding):
			return nil, err
		case err == nil && slices.Contains(p.owners(), mine.Owner): // the answer to an attempt before was lost
			return release, nil
		case err != nil, p.Owner == "", len(p.owners()) >= maxOwners:
			return func(context.Context) error { return nil }, nil // it stays pinned
		case !p.Ending.IsZero():
			p = mine
		default:
			p.Also = append(p.Also, mine.Owner)
		}
		if err = c.replacePin(ctx, name, p, version); !errors.Is(err, ErrConflict) {
			return release, err
		}
	}
	return nil, fmt.Errorf("keep backup %s: %w", name, errBusy)
}

// owners are the commands that keep a backup; none if an operator has pinned it.
func (p *Pin) owners() []string {
	if p.Owner == "" || !p.Ending.IsZero() {
		return nil
	}
	return append([]string{p.Owner}, p.Also...)
}

func (c *Catalog) replacePin(ctx context.Context, name string, p Pin, version string) error {
	o, err := ifVersion(name+"/"+pinFile, version)
	if err != nil {
		return err
	}
	return c.putPin(ctx, name, p, o)
}

// releaseBackup takes one command's hold away.
func (c *Catalog) releaseBackup(ctx context.Context, name, owner string) error {
	for range holdTries {
		p, version, err := c.pin(ctx, name)
		if errors.Is(err, ErrNotFound) || err == nil && !slices.Contains(p.owners(), owner) {
			return nil
		}
		if err != nil {
			return err
		}
		others := slices.DeleteFunc(p.owners(), func(o string) bool { return o == owner })
		if len(others) > 0 {
			p.Owner, p.Also = others[0], others[1:]
		} else {
			p.Ending = c.now().UTC()
		}
		err = c.replacePin(ctx, name, p, version)
		if err == nil && len(others) == 0 {
			return c.removeFile(ctx, name+"/"+pinFile)
		}
		if !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("release backup %s: %w", name, errBusy)
}

// settledPin reads a pin that nobody is about to remove.
func (c *Catalog) settledPin(ctx context.Context, name string) (p Pin, version string, err error) {
	for range holdTries {
		p, version, err = c.pin(ctx, name)
		if err != nil || p.Ending.IsZero() || c.now().Sub(p.Ending).Abs() > endingTakes {
			return p, version, err
		}
		select {
		case <-ctx.Done():
			return Pin{}, "", ctx.Err()
		case <-time.After(endingPause):
		}
	}
	return Pin{}, "", fmt.Errorf("backup %s: %w", name, errEnding)
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
	p, _, err := c.pin(ctx, name)
	return p, err
}

func (c *Catalog) pin(ctx context.Context, name string) (p Pin, version string, err error) {
	if err := ValidBackupName(name); err != nil {
		return Pin{}, "", err
	}
	key := name + "/" + pinFile
	data, info, err := c.read(ctx, key, pinWay)
	if err != nil {
		return Pin{}, "", err
	}
	var j pinJSON
	if err := decodeOwn(key, pinWay, data, pinVersion, &j); err != nil {
		return Pin{}, "", err
	}
	return j.Pin, info.Version, nil
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
