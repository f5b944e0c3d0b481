package kube

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// TestOwners reads both stored forms, and nothing of what is none.
func TestOwners(t *testing.T) {
	bytesField := func(n protowire.Number, b []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), b)
	}
	var meta []byte
	meta = append(meta, bytesField(metaUID, []byte("u1"))...)
	for _, o := range []string{"o1", "o2"} {
		meta = append(meta, bytesField(metaOwners, append(bytesField(1, []byte("ReplicaSet")), bytesField(ownerUID, []byte(o))...))...)
	}
	object := append([]byte(protobufMark), bytesField(unknownRaw, bytesField(objectMeta, meta))...)
	json := []byte(`{"kind":"X","metadata":{"uid":"u1","ownerReferences":[{"uid":"o1"},{"uid":"o2"}]}}`)
	for name, value := range map[string][]byte{"protobuf": object, "json": json} {
		if uid, owners := Owners(value); uid != "u1" || !slices.Equal(owners, []string{"o1", "o2"}) {
			t.Errorf("%s: %q, %v", name, uid, owners)
		}
	}
	for _, value := range [][]byte{nil, []byte("x"), []byte("{"), []byte("k8s:enc:aescbc:v1:key1:xyz"), object[:len(object)-3], []byte(protobufMark)} {
		if uid, owners := Owners(value); uid != "" || len(owners) > 0 {
			t.Errorf("%q: %q, %v", value, uid, owners)
		}
	}
}
