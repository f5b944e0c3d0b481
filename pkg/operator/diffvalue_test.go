package operator

import (
	"fmt"
	"testing"
)

// TestShowValue: what a value's bytes tell is shown, and nothing of a secret unless it is asked for, wherever it is stored.
func TestShowValue(t *testing.T) {
	const secret = `{"kind":"Secret","data":{"a":"aHVudGVyMg=="}}`
	for _, c := range []struct {
		key, value string
		secrets    bool
		want       ShownValue
	}{
		{"/registry/configmaps/shop/a", `{"a": 1}`, false, ShownValue{Bytes: 8, Form: "json", JSON: []byte(`{"a":1}`)}},
		{"plain", "text", false, ShownValue{Bytes: 4, Form: "text", Text: "text"}},
		{"plain", "\x00\x01", false, ShownValue{Bytes: 2, Form: "binary", Base64: []byte{0, 1}}},
		{"/registry/secrets/shop/p", "hunter2", false, ShownValue{Bytes: 7, Form: "text", Hidden: true}},
		{"/registry/secrets/shop/p", "hunter2", true, ShownValue{Bytes: 7, Form: "text", Text: "hunter2"}},
		{"/other/secrets/shop/p", "hunter2", false, ShownValue{Bytes: 7, Form: "text", Hidden: true}},
		{"/elsewhere/p", secret, false, ShownValue{Bytes: len(secret), Form: "json", Type: "Secret", Hidden: true}},
		{"/registry/pods/shop/p", "k8s\x00", false, ShownValue{Bytes: 4, Form: "protobuf", Base64: []byte("k8s\x00")}},
	} {
		if got := ShowValue([]byte(c.key), []byte(c.value), c.secrets); fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", c.want) {
			t.Errorf("%s %q: %+v, want %+v", c.key, c.value, got, c.want)
		}
	}
}
