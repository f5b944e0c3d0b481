// Package volume has the nouns of data volumes, and what is the same for all of them: looking at a device before anything is written to it,
// formatting, checking, growing and mounting it, and telling whose it is.
//
// A device is formatted only if every byte of it was read and is zero, and the host's own blkid finds nothing either; whatever holds
// anything else is refused, never repaired into emptiness. Where volumes come from is for the packages below this one.
package volume

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Errors to branch on. What they are wrapped in says which volume, why, and what to do.
var (
	// ErrNotBlank: the device holds something that is no file system of ours, so it is neither formatted nor mounted.
	ErrNotBlank = errors.New("the device is not blank")
	// ErrInUse: the device, or its mount point, is in use by something else.
	ErrInUse = errors.New("in use")
	// ErrNotMounted: the directory isn't on a mounted volume.
	ErrNotMounted = errors.New("no volume is mounted")
	// ErrForeign: the volume belongs to another cluster or another node.
	ErrForeign = errors.New("the volume belongs to another node or cluster")
	// ErrNotEncrypted: the volume isn't encrypted as it is required to be.
	ErrNotEncrypted = errors.New("the volume is not encrypted as required")
	// ErrRoot: the volume holds the machine's own system.
	ErrRoot = errors.New("a root volume")
)

// ID is a provider's name for a volume, for example vol-0123456789abcdef0.
type ID string

// Attachment says where a volume is.
type Attachment struct {
	// Instance is the provider's name for the machine.
	Instance string
	// Device is the name that was asked for, for example /dev/xvdu; the machine may use another.
	Device string
	// State is attaching, attached, detaching, detached or busy.
	State string
}

// Volume is one volume as its provider describes it.
type Volume struct {
	ID ID
	// Node is whose data it is for; empty if its tags don't say.
	Node      cluster.NodeID
	Zone      string
	Type      string
	SizeGiB   int
	Encrypted bool
	// Key names the key with which it is encrypted.
	Key string
	// State is creating, available, in-use, deleting, deleted or error.
	State       string
	Attachments []Attachment
	Tags        map[string]string
	// Created is when the provider made it; a copy is made later than its original.
	Created time.Time
}

// String names the volume for a log: its id, and whose it is.
func (v *Volume) String() string {
	if v.Node == "" {
		return string(v.ID)
	}
	return fmt.Sprintf("%s (%s)", v.ID, v.Node)
}

// Encryption is what is required of a volume.
type Encryption struct {
	Required bool
	// Key is the ARN of the only key that is accepted; empty accepts every key.
	Key string
}

// ParseEncryption reads the value of --require-encrypted-volume: empty or "false", "true", or the ARN of a KMS key.
func ParseEncryption(s string) (Encryption, error) {
	switch {
	case s == "" || s == "false":
		return Encryption{}, nil
	case s == "true":
		return Encryption{Required: true}, nil
	}
	// arn:aws:kms:region:account:key/id
	parts := strings.Split(s, ":")
	if len(parts) != 6 || parts[0] != "arn" || parts[2] != "kms" {
		return Encryption{}, fmt.Errorf("%q is not the ARN of a KMS key, like arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab", s)
	}
	if !strings.HasPrefix(parts[5], "key/") {
		return Encryption{}, fmt.Errorf("%q is not a key but an alias; a volume names its key, so give the ARN of the key itself (aws kms describe-key prints it)", s)
	}
	return Encryption{Required: true, Key: s}, nil
}

// Check returns an error that wraps ErrNotEncrypted if the volume isn't as required.
func (e Encryption) Check(v *Volume) error {
	switch {
	case !e.Required:
		return nil
	case !v.Encrypted:
		return fmt.Errorf("volume %s is not encrypted, and --require-encrypted-volume is given: nothing is written to it; start without the flag, have \"etcd-manager-ctl volumes encrypt\" replace the volumes of the running members by encrypted ones, then give the flag again: %w", v, ErrNotEncrypted)
	case e.Key != "" && v.Key != e.Key:
		return fmt.Errorf("volume %s is encrypted with the key %s, but --require-encrypted-volume wants %s: nothing is written to it: %w",
			v, v.Key, e.Key, ErrNotEncrypted)
	}
	return nil
}
