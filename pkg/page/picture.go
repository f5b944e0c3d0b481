package page

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
)

// picture is the cluster as a drawing. All lengths are in its own units, which are about pixels.
type picture struct {
	// ID tells the drawings of one page apart; Class says for which widths it is.
	ID, Class   string
	W, H        int
	Title, Desc string
	Boxes       []box
	Arrows      []arrow
	Labels      []label
}

// box is a node, or the store.
type box struct {
	X, Y, W, H  int
	State       state
	Store       bool
	Name, Right string
	Lines       []label
}

// arrow is a line with a head. One that is Off stands for a way that doesn't work.
type arrow struct {
	Path, Head string
	Off        bool
}

// label is a text at a place.
type label struct {
	X, Y int
	Text string
}

const (
	narrowWidth, wideWidth = 340, 920
	// besideEach is how many nodes stand side by side, mostDrawn how many are drawn at all.
	besideEach, mostDrawn = 5, 12
)

// pictures are the same drawing for a narrow and a wide screen: text keeps its size in both. With many nodes the narrow one serves both.
func pictures(r health.Report) []picture {
	if len(r.Nodes) == 0 {
		return nil
	}
	d := newDrawing(r)
	narrow := d.tree()
	if len(r.Nodes) > besideEach {
		return []picture{narrow}
	}
	narrow.Class = "narrow"
	return []picture{narrow, d.row()}
}

// drawing is what the two layouts share.
type drawing struct {
	r      health.Report
	nodes  []health.Node // etcd's leader first
	store  state
	title  string
	desc   string
	leader bool // the first node leads etcd
	// writes is the index of the node that writes to the store, -1 if none does.
	writes int
}

func newDrawing(r health.Report) drawing {
	d := drawing{r: r, nodes: slices.Clone(r.Nodes), writes: -1, store: state{"ok", "store"},
		title: fmt.Sprintf("The cluster: %s and the store", cluster.Count(len(r.Nodes), "node"))}
	slices.SortStableFunc(d.nodes, func(x, y health.Node) int { return cmp.Compare(rank(x), rank(y)) })
	d.nodes = d.nodes[:min(len(d.nodes), mostDrawn)]
	d.leader = rank(d.nodes[0]) == 0
	for i, n := range d.nodes {
		if r.Leader != nil && r.Leader.Current && r.Leader.Node == n.Node {
			d.writes = i
		}
	}
	for _, f := range r.Findings {
		switch f.Kind {
		case string(cluster.AttentionStore), health.KindStoreSilent, health.KindStoreRefuses:
			d.store = state{"bad", "store away"}
		}
	}
	d.desc = d.describe()
	return d
}

// rank puts etcd's leader before the others.
func rank(n health.Node) int {
	if n.Role == catalog.RoleLeader && !n.Silent {
		return 0
	}
	return 1
}

// describe says in words what is drawn.
func (d *drawing) describe() string {
	var b strings.Builder
	for i, n := range d.nodes {
		fmt.Fprintf(&b, "Node %s: %s, %s. ", name(string(n.Node)), d.roleWords(i), nodeState(d.r, n).Word)
	}
	if n := len(d.r.Nodes) - len(d.nodes); n > 0 {
		fmt.Fprintf(&b, "%d more nodes are in the table. ", n)
	}
	switch {
	case !d.leader:
		b.WriteString("No member is known to lead etcd. ")
	case len(d.nodes) > 1:
		fmt.Fprintf(&b, "Etcd on node %s copies its log to the others. ", name(string(d.nodes[0].Node)))
	}
	if d.writes < 0 {
		b.WriteString("No manager is known to write backups to the store.")
	} else {
		fmt.Fprintf(&b, "The manager of node %s writes backups and changes to the store.", name(string(d.nodes[d.writes].Node)))
	}
	return b.String()
}

func (d *drawing) roleWords(i int) string {
	n := d.nodes[i]
	switch {
	case n.Silent:
		return "unknown role"
	case n.Role == catalog.RoleNone:
		return "no member"
	case n.Role == catalog.RoleMember:
		return "member"
	}
	return "etcd " + text(n.Role)
}

// node is the box of a node.
func (d *drawing) node(i, x, y, w, h int) box {
	n := d.nodes[i]
	b := box{X: x, Y: y, W: w, H: h, State: nodeState(d.r, n)}
	letters := (w - 28) * 10 / 75 // about what fits
	right := d.roleWords(i)
	if n.Silent {
		right = ""
	}
	b.Name, b.Right = fit(string(n.Node), (w-52)/10), right
	b.Lines = append(b.Lines, label{x + 14, y + 47, fit(b.State.Word, letters)})
	third := []string{}
	if n.Version != "" {
		third = append(third, n.Version)
	}
	if n.DBSize > 0 {
		third = append(third, size(n.DBSize))
	}
	if d.writes == i {
		third = append(third, "manager leads")
	}
	b.Lines = append(b.Lines, label{x + 14, y + 66, fit(strings.Join(third, " · "), letters)})
	return b
}

func (d *drawing) storeBox(x, y, w, h int) box {
	b := box{X: x, Y: y, W: w, H: h, Store: true, State: d.store, Name: "Store"}
	letters := (w - 28) / 8
	if d.store.Class != "ok" {
		b.Name = "Store, which doesn't answer"
	}
	words := "no backup is known"
	if d.r.Backup != nil {
		words = "newest backup " + seconds(d.r.Backup.AgeSeconds) + " old"
	}
	b.Lines = []label{{x + 14, y + 47, fit(d.r.Store, letters)}, {x + 14, y + 66, fit(words, letters)}}
	return b
}

// fit cuts a text to so many letters.
func fit(s string, letters int) string {
	r := []rune(text(s))
	if letters = max(letters, 4); len(r) > letters {
		return string(r[:letters-1]) + "…"
	}
	return string(r)
}

// edge is room for a line's width.
const boxHeight, edge = 80, 2

// tree has the nodes below each other: copies go down on the left, backups on the right.
func (d *drawing) tree() picture {
	const left, gap = 26, 14
	width := narrowWidth - 2*left
	p := picture{ID: "tree", W: narrowWidth, Title: d.title, Desc: d.desc}
	y, top := edge, make([]int, len(d.nodes))
	for i := range d.nodes {
		top[i] = y
		p.Boxes = append(p.Boxes, d.node(i, left, y, width, boxHeight))
		y += boxHeight + gap
	}
	if n := len(d.r.Nodes) - len(d.nodes); n > 0 {
		p.Labels = append(p.Labels, label{left + 14, y + 14, fmt.Sprintf("and %d more nodes, in the table", n)})
		y += 34
	}
	p.Boxes = append(p.Boxes, d.storeBox(left, y, width, boxHeight))
	p.H = y + boxHeight + edge
	for i := 1; d.leader && i < len(d.nodes); i++ {
		from, to := top[0]+boxHeight/2, top[i]+boxHeight/2
		p.Arrows = append(p.Arrows, arrow{Path: fmt.Sprintf("M%d %dH10V%dH%d", left, from, to, left-8),
			Head: fmt.Sprintf("M%d %dl-9 -5v10z", left-1, to), Off: !copies(d.nodes[i])})
	}
	if d.writes >= 0 {
		from, to := top[d.writes]+boxHeight/2, y+boxHeight/2
		right := left + width
		p.Arrows = append(p.Arrows, arrow{Path: fmt.Sprintf("M%d %dH%dV%dH%d", right, from, narrowWidth-10, to, right+8),
			Head: fmt.Sprintf("M%d %dl9 -5v10z", right+1, to), Off: !d.stores()})
	}
	return p
}

// row has the nodes beside each other: copies go above them, backups below.
func (d *drawing) row() picture {
	const gap, below = 24, 52
	n, top := len(d.nodes), edge
	if d.leader && n > 1 {
		top = 40 // what is above the boxes
	}
	width := min((wideWidth-(n-1)*gap)/n, 290)
	left := (wideWidth - n*width - (n-1)*gap) / 2
	p := picture{ID: "row", Class: "wide", W: wideWidth, Title: d.title, Desc: d.desc}
	mid := func(i int) int { return left + i*(width+gap) + width/2 }
	for i := range d.nodes {
		p.Boxes = append(p.Boxes, d.node(i, left+i*(width+gap), top, width, boxHeight))
	}
	const storeWidth = 420
	y := top + boxHeight + below
	p.Boxes = append(p.Boxes, d.storeBox((wideWidth-storeWidth)/2, y, storeWidth, boxHeight))
	p.H = y + boxHeight + edge
	for i := 1; d.leader && i < n; i++ {
		p.Arrows = append(p.Arrows, arrow{Path: fmt.Sprintf("M%d %dV24H%dV%d", mid(0), top, mid(i), top-8),
			Head: fmt.Sprintf("M%d %dl-5 -9h10z", mid(i), top-1), Off: !copies(d.nodes[i])})
	}
	if d.leader && n > 1 {
		p.Labels = append(p.Labels, label{mid(0) + 12, 16, "copies its log to"})
	}
	if d.writes >= 0 {
		bend := top + boxHeight + below/2
		p.Arrows = append(p.Arrows, arrow{Path: fmt.Sprintf("M%d %dV%dH%dV%d", mid(d.writes), top+boxHeight, bend, wideWidth/2, y-8),
			Head: fmt.Sprintf("M%d %dl-5 -9h10z", wideWidth/2, y-1), Off: !d.stores()})
		p.Labels = append(p.Labels, label{wideWidth/2 + 12, y - 10, "backups and changes"})
	}
	return p
}

// stores tells whether what the managers' leader writes arrives.
func (d *drawing) stores() bool { return d.store.Class == "ok" && !d.nodes[d.writes].Silent }

// copies tells whether a member gets the leader's log, as far as it says so itself.
func copies(n health.Node) bool { return n.Running && n.Healthy && !n.Silent }
