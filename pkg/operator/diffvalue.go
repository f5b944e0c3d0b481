package operator

import (
	"bytes"
	"encoding/json"
	"strings"
	"unicode/utf8"

	"github.com/etcd-manager/etcd-manager/pkg/kube"
)

// ShownValue is a value as it can be shown to a person or a program: at most one of JSON, Text and Base64 is set.
type ShownValue struct {
	Bytes int `json:"bytes"`
	// Form is "json", "text", "binary", or how Kubernetes stores it: "protobuf", "encrypted".
	Form string `json:"form"`
	// Type is Kubernetes' apiVersion and kind, if the bytes tell it.
	Type   string          `json:"type,omitempty"`
	JSON   json.RawMessage `json:"json,omitempty"`
	Text   string          `json:"text,omitempty"`
	Base64 []byte          `json:"base64,omitempty"`
	// Hidden is true for a secret: nothing of it is shown but its size.
	Hidden bool `json:"hidden,omitempty"`
}

// ShowValue decodes a value as far as its bytes tell how. Secrets of Kubernetes are hidden unless secrets is true.
func ShowValue(key, value []byte, secrets bool) ShownValue {
	v := kube.ReadValue(value)
	s := ShownValue{Bytes: len(value), Form: v.Form}
	if v.Kind != "" {
		s.Type = strings.TrimPrefix(v.APIVersion+" "+v.Kind, " ")
	}
	o, _ := kube.ObjectOf(string(key))
	s.Hidden = !secrets && (o.Kind == "Secret" || v.Kind == "Secret" || bytes.Contains(key, []byte("/secrets/")))
	compact := &bytes.Buffer{}
	switch {
	case json.Valid(value) && json.Compact(compact, value) == nil:
		s.Form, s.JSON = "json", compact.Bytes()
	case s.Form == "" && utf8.Valid(value) && !bytes.ContainsRune(value, 0):
		s.Form, s.Text = "text", string(value)
	default:
		if s.Form == "" {
			s.Form = "binary"
		}
		s.Base64 = value
	}
	if s.Hidden {
		s.JSON, s.Text, s.Base64 = nil, "", nil
	}
	return s
}
