package kube

import (
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// FuzzValue looks at any bytes as a stored object, under any key.
func FuzzValue(f *testing.F) {
	f.Add([]byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"deletionTimestamp":"2026-01-30T01:02:03Z","deletionGracePeriodSeconds":30}}`), "/registry/pods/shop/web")
	f.Add([]byte("k8s\x00\n\x09\n\x02v1\x12\x03Pod\x12\x0c\n\x0aJ\x06\x08\x80\x80\x80\x80\x06"), "/registry/services/specs/shop/web")
	f.Add([]byte("k8s:enc:aescbc:v1:"+strings.Repeat("x", 5000)), "/registry/\xff/\x1b")
	f.Fuzz(func(t *testing.T, value []byte, key string) {
		testutil.Untrusted(t, len(value)+len(key), testutil.Usual, func() error {
			v := ReadValue(value)
			if at, asked := DeletionAsked(value); asked == v.Asked.IsZero() || asked && !at.Equal(v.Asked) {
				t.Errorf("%+v, %s, %t", v, at, asked)
			}
			ObjectOf(key)
			InNamespace("shop")([]byte(key))
			return nil
		})
	})
}
