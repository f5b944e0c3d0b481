package kube

import (
	"bytes"
	"encoding/json"

	"google.golang.org/protobuf/encoding/protowire"
)

const (
	metaUID    = 5
	metaOwners = 13
	ownerUID   = 4
)

// Owners reads of a stored value the UID of its object, and the UIDs of the objects that own it. Both are empty for what isn't an object,
// and for what the API server has encrypted.
func Owners(value []byte) (uid string, owners []string) {
	switch {
	case bytes.HasPrefix(value, []byte(protobufMark)):
		meta := field(field(value[len(protobufMark):], unknownRaw), objectMeta)
		eachField(meta, func(n protowire.Number, b []byte, _ uint64) {
			switch n {
			case metaUID:
				uid = string(b)
			case metaOwners:
				if o := string(field(b, ownerUID)); o != "" {
					owners = append(owners, o)
				}
			}
		})
	case len(value) > 0 && value[0] == '{':
		var o struct {
			Metadata struct {
				UID             string `json:"uid"`
				OwnerReferences []struct {
					UID string `json:"uid"`
				} `json:"ownerReferences"`
			} `json:"metadata"`
		}
		if json.Unmarshal(value, &o) != nil {
			return "", nil
		}
		uid = o.Metadata.UID
		for _, x := range o.Metadata.OwnerReferences {
			owners = append(owners, x.UID)
		}
	}
	return uid, owners
}
