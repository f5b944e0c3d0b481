package kube

import (
	"bytes"
	"encoding/json"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Value is what the stored form of an object tells without knowing its kind.
type Value struct {
	// Form is "protobuf", "json" or "encrypted"; empty for what isn't an object.
	Form             string
	APIVersion, Kind string
	// Provider is what encrypted it, by what stands before it.
	Provider string
	// Asked is when somebody asked for its deletion; zero if nobody has.
	Asked time.Time
}

const (
	protobufMark  = "k8s\x00"
	encryptedMark = "k8s:enc:"
)

// ReadValue looks at a stored value.
func ReadValue(value []byte) Value {
	switch {
	case bytes.HasPrefix(value, []byte(encryptedMark)):
		parts := strings.SplitN(string(value[:min(len(value), 200)]), ":", 6)
		v := Value{Form: "encrypted"}
		if len(parts) == 6 { // k8s:enc:<provider>:<version>:<key>:
			v.Provider = parts[2] + ", key " + parts[4]
		}
		return v
	case bytes.HasPrefix(value, []byte(protobufMark)):
		return readUnknown(value[len(protobufMark):])
	case len(value) > 0 && value[0] == '{':
		return readJSON(value)
	}
	return Value{}
}

func readJSON(value []byte) Value {
	var o struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			DeletionTimestamp          time.Time `json:"deletionTimestamp"`
			DeletionGracePeriodSeconds int64     `json:"deletionGracePeriodSeconds"`
		} `json:"metadata"`
	}
	if json.Unmarshal(value, &o) != nil || o.Kind == "" {
		return Value{}
	}
	return Value{Form: "json", APIVersion: o.APIVersion, Kind: o.Kind,
		Asked: askedAt(o.Metadata.DeletionTimestamp, o.Metadata.DeletionGracePeriodSeconds)}
}

// askedAt is when a deletion was asked for: the timestamp is when the grace ends.
func askedAt(deletion time.Time, grace int64) time.Time {
	if deletion.IsZero() {
		return time.Time{}
	}
	return deletion.Add(-time.Duration(grace) * time.Second).UTC()
}

// Numbers of fields that every object in protocol buffers has.
const (
	unknownTypeMeta = 1 // of runtime.Unknown, the envelope
	unknownRaw      = 2
	typeAPIVersion  = 1
	typeKind        = 2
	objectMeta      = 1 // of every object
	metaDeletion    = 9
	metaGrace       = 10
	timeSeconds     = 1
)

// readUnknown reads the envelope of an object, and of the object the part that all have in common.
func readUnknown(b []byte) Value {
	v := Value{Form: "protobuf"}
	typeMeta, raw := field(b, unknownTypeMeta), field(b, unknownRaw)
	v.APIVersion, v.Kind = string(field(typeMeta, typeAPIVersion)), string(field(typeMeta, typeKind))
	meta := field(raw, objectMeta)
	if t := field(meta, metaDeletion); len(t) > 0 {
		v.Asked = askedAt(time.Unix(number(t, timeSeconds), 0), number(meta, metaGrace))
	}
	return v
}

// field returns the last field of that number that has bytes; nil if there is none, or b is no message.
func field(b []byte, want protowire.Number) (found []byte) {
	eachField(b, func(n protowire.Number, bytes []byte, _ uint64) {
		if n == want && bytes != nil {
			found = bytes
		}
	})
	return found
}

// number returns the last field of that number that is one.
func number(b []byte, want protowire.Number) (found int64) {
	eachField(b, func(n protowire.Number, bytes []byte, v uint64) {
		if n == want && bytes == nil {
			found = int64(v)
		}
	})
	return found
}

func eachField(b []byte, visit func(n protowire.Number, bytes []byte, v uint64)) {
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return
		}
		b = b[size:]
		switch kind {
		case protowire.BytesType:
			v, size := protowire.ConsumeBytes(b)
			if size < 0 {
				return
			}
			visit(n, v, 0)
			b = b[size:]
		case protowire.VarintType:
			v, size := protowire.ConsumeVarint(b)
			if size < 0 {
				return
			}
			visit(n, nil, v)
			b = b[size:]
		default:
			size := protowire.ConsumeFieldValue(n, kind, b)
			if size < 0 {
				return
			}
			b = b[size:]
		}
	}
}

// DeletionAsked tells of a stored value since when its object is being deleted; false if nobody has asked for that.
func DeletionAsked(value []byte) (time.Time, bool) {
	v := ReadValue(value)
	return v.Asked, !v.Asked.IsZero()
}
