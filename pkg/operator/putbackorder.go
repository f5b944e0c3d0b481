package operator

import (
	"bytes"
	"slices"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/kube"
	"github.com/etcd-manager/etcd-manager/pkg/putback"
)

// rowOf is the row in which a key is counted.
func rowOf(rows map[PutBackRow]*PutBackRow, key []byte) *PutBackRow {
	id := PutBackRow{}
	if o, ok := kube.ObjectOf(string(key)); ok {
		id.Kind, id.Namespace = o.Kind, o.Namespace
	} else if i := strings.LastIndexByte(string(key), '/'); i > 0 {
		id.Kind = string(key[:i+1])
	} else {
		id.Kind = string(key)
	}
	if len(rows) >= maxPutBackRows && rows[id] == nil {
		id = PutBackRow{Kind: "(others)"}
	}
	if rows[id] == nil {
		row := id
		rows[id] = &row
	}
	return rows[id]
}

// maxPutBackRows bounds the rows of a preview.
const maxPutBackRows = 10_000

// sortOwnersFirst orders objects so that API servers and controllers never see one without what it needs: namespaces and definitions of
// kinds first, then owners before what they own, or the garbage collector would remove that. The rest is sorted by key.
func sortOwnersFirst(entries []putback.Entry) {
	type node struct {
		owners []string
		depth  int
	}
	byUID := map[string]*node{}
	nodes := make([]*node, len(entries))
	uids := make([]string, len(entries))
	for i := range entries {
		n := &node{depth: -1}
		uids[i], n.owners = kube.Owners(entries[i].Value)
		if nodes[i] = n; uids[i] != "" {
			byUID[uids[i]] = n
		}
	}
	var depth func(n *node, steps int) int
	depth = func(n *node, steps int) int {
		if n.depth >= 0 || steps > maxOwners {
			return max(n.depth, 0)
		}
		n.depth = 0 // for what owns itself
		for _, uid := range n.owners {
			if o := byUID[uid]; o != nil {
				n.depth = max(n.depth, depth(o, steps+1)+1)
			}
		}
		return n.depth
	}
	order := make([]int, len(entries))
	rank := make([]int, len(entries))
	for i := range entries {
		order[i], rank[i] = i, 2+depth(nodes[i], 0)
		switch key := string(entries[i].Key); {
		case strings.HasPrefix(key, kube.NamespacesPrefix):
			rank[i] = 0
		case strings.HasPrefix(key, kube.Registry+"apiextensions.k8s.io/customresourcedefinitions/"):
			rank[i] = 1
		}
	}
	slices.SortFunc(order, func(a, b int) int {
		if rank[a] != rank[b] {
			return rank[a] - rank[b]
		}
		return bytes.Compare(entries[a].Key, entries[b].Key)
	})
	sorted := make([]putback.Entry, len(entries))
	for i, from := range order {
		sorted[i] = entries[from]
	}
	copy(entries, sorted)
}

// maxOwners bounds how far owners of owners are followed.
const maxOwners = 100
