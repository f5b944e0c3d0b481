package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestForgedNames: a record that names something which would lead a node out of its data dir is that object's
// fault. It isn't read, in whatever field
// the name stands, and the records beside it are.
func TestForgedNames(t *testing.T) {
	ctx := context.Background()
	for _, name := range []string{"../../..", "..", ".", "/etc", "a/b", `a\b`, "a\x00b", ".x", strings.Repeat("a", 1000)} {
		quoted, err := json.Marshal(name)
		if err != nil {
			t.Fatal(err)
		}
		with := func(text string) string { return strings.ReplaceAll(text, "NAME", string(quoted)) }
		s := blobtest.NewMemory()
		c := New(s)
		refused := func(what string, err error) {
			t.Helper()
			var object *ObjectError
			if !errors.Is(err, cluster.ErrCorrupt) || !errors.As(err, &object) {
				t.Errorf("%s with %.30q: %v", what, name, err)
			}
		}
		for what, text := range map[string]string{
			"token":   `{"timestamp":1,"version":1,"phase":"formed","token":NAME}`,
			"leader":  `{"timestamp":1,"version":1,"phase":"formed","leader":NAME}`,
			"founder": `{"timestamp":1,"version":1,"phase":"formed","token":"t","founders":[{"name":NAME}]}`,
		} {
			put(t, s, markerKey, with(text))
			_, _, err := c.Marker(ctx)
			refused("marker: "+what, err)
		}
		put(t, s, operationKey("good"), `{"version":1,"id":"good","kind":"restore","state":"proving","newToken":"t2"}`)
		for what, text := range map[string]string{
			"new token": `"id":"op","newToken":NAME`, "old token": `"id":"op","oldToken":NAME`,
			"source":        `"id":"op","source":{"node":"a","token":NAME}`,
			"source's node": `"id":"op","source":{"node":NAME,"token":"t"}`, "member": `"id":"op","members":[{"name":NAME}]`,
			"node": `"id":"op","proven":[NAME]`, "id": `"id":NAME`,
			"progress": `"id":"op","progress":{NAME:{"phase":"x"}}`, "incarnation": `"id":"op","target":{"incarnation":NAME}`,
		} {
			put(t, s, operationKey("op"), with(`{"version":1,"kind":"restore","state":"staging",`+text+`}`))
			_, _, err := c.Operation(ctx, "op")
			if what != "incarnation" || name != ".x" && len(name) < 1000 { // a name of this sort leads nowhere
				refused("operation: "+what, err)
				ops, problems, err := c.Operations(ctx)
				if err != nil || len(ops) != 1 || ops[0].ID != "good" || len(problems) != 1 {
					t.Errorf("%s with %.30q spoils the list: %+v, %+v, %v", what, name, ops, problems, err)
				}
			}
		}
		put(t, s, controlPrefix+"2026-01-31T00:00:00Z-000000/"+recoverFile,
			with(`{"version":1,"timestamp":"1","source":{"token":NAME},"spec":{"memberCount":1}}`))
		_, err = c.Command(ctx, "2026-01-31T00:00:00Z-000000")
		refused("command: source", err)
	}
}
