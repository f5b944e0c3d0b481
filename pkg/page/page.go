// Package page shows to people how a cluster does: one HTML page with its pictures, made on the server, that needs no script and fetches
// nothing. What is healthy, and what has to be done, is pkg/operator/health's to say; here it is only drawn.
//
// It must never change anything, never wait for etcd or a store while somebody looks, and never let what others have written (names,
// errors, commands) become anything but text.
package page

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
)

// View is what is shown. As JSON it keeps situations for tests.
type View struct {
	Report health.Report `json:"report"`
	Marks  []health.Mark `json:"marks,omitempty"`
	// Node is the manager that shows the page; empty if it is a tool.
	Node cluster.NodeID `json:"node,omitempty"`
	// StoreRead is when the store was last read for this; zero if never. StoreProblem says why it couldn't be read since.
	StoreRead    time.Time `json:"storeRead,omitzero"`
	StoreProblem string    `json:"storeProblem,omitempty"`
	// ManagerRead is when the manager said last how its node does; zero if that isn't known, or it is a tool that shows the page.
	ManagerRead time.Time `json:"managerRead,omitzero"`
	// Events are what this manager has decided or seen, oldest first.
	Events []Event `json:"events,omitempty"`
}

// Event is a decision, and when it was made.
type Event struct {
	At   time.Time `json:"at"`
	Text string    `json:"text"`
}

// What bounds a page, whatever a store or a cluster has. What is left out is said.
const (
	mostFindings, mostNodes, mostWaiting, mostGaps, mostEndings, mostEvents = 40, 60, 40, 20, 60, 25
	// mostText bounds a sentence, mostName a name, in bytes.
	mostText, mostName = 1000, 100
)

// oldWord is how old what the manager said may be before that is said.
const oldWord = 10 * time.Second

// The refreshes that a reader can choose, in seconds. 0 is none, which is the default: a page that is loaded again by itself takes the
// place and the focus away from who reads it, or has it read aloud.
const (
	noRefresh   = 0
	slowRefresh = 30
)

//go:embed page.gohtml
var pageText string

//go:embed style.css
var styleText string

// pages are parsed once. They are never changed.
type pages struct{ cluster *template.Template }

func parsePages() (*pages, error) {
	t, err := template.New("page").Parse(pageText)
	if err != nil {
		return nil, fmt.Errorf("parse page: %w", err)
	}
	return &pages{cluster: t}, nil
}

// styleHash is what the Content-Security-Policy lets in: the one style sheet of the page.
func styleHash() string {
	sum := sha256.Sum256([]byte(styleText))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// head is what all pages begin with.
type head struct {
	Title   string
	Style   template.CSS
	Icon    template.URL
	Refresh int
	// RefreshURL is the way to the page that loads itself again, or back.
	RefreshURL string
}

func newHead(title string, verdict health.Verdict, refresh int) head {
	h := head{Title: title, Style: template.CSS(styleText), //nolint:gosec // a constant
		Icon: icon(verdict), Refresh: refresh, RefreshURL: "?"}
	if refresh == noRefresh {
		h.RefreshURL = fmt.Sprintf("?refresh=%d", slowRefresh)
	}
	return h
}

// icon is the picture in the browser's tab: the shape of the verdict's mark, so that it can be told without color too.
func icon(v health.Verdict) template.URL {
	shape, color := "M8 17l5 5 11-12", "%231a7f4b"
	switch v {
	case health.Healthy:
	case health.Degraded:
		shape, color = "M16 8v10M16 22v2", "%239a6700"
	case health.NeedsYou:
		shape, color = "M10 10l12 12M22 10L10 22", "%23c0262d"
	default:
		shape, color = "M10 16h12", "%2357606a"
	}
	const svg = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E"
	return template.URL(svg + "%3Ccircle cx='16' cy='16' r='16' fill='" + color + "'/%3E" + //nolint:gosec // all parts are constants
		"%3Cpath d='" + shape + "' stroke='white' stroke-width='4' fill='none'/%3E%3C/svg%3E")
}

// state is how one thing does, as a class of the style sheet, a mark and a word: never color alone.
type state struct{ Class, Word string }

func verdictState(v health.Verdict) state {
	switch v {
	case health.Healthy:
		return state{"ok", "Healthy"}
	case health.Degraded:
		return state{"warn", "Degraded"}
	case health.NeedsYou:
		return state{"bad", "Needs you"}
	}
	return state{"unknown", "Can't tell"}
}

// clusterPage is what the template prints.
type clusterPage struct {
	head
	Name, Store, At string
	// Sources say where this comes from and how old it is.
	Sources    []string
	Verdict    state
	Summary    string
	Findings   []finding
	More       string
	Known      bool // false if nothing at all is known of the cluster
	Facts      []fact
	Operation  *operation
	Ended      string
	Waiting    []health.Command
	Pictures   []picture
	Timelines  []timeline
	Window     []string
	WindowBad  bool
	Gaps       []string
	BackupRows []fact
	Copies     []fact
	Standbys   []fact
	Nodes      []nodeRow
	Endings    []ending
	Alarms     []string
	Events     []fact
}

type fact struct{ Name, Text string }

type finding struct {
	State              state
	Text, Where, Since string
	Command, NoCommand string
}

// Render makes the page; refresh is after how many seconds a browser loads it again, 0 for never.
func (p *pages) render(v View, refresh int) ([]byte, error) {
	var b bytes.Buffer
	if err := p.cluster.Execute(&b, newClusterPage(v, refresh)); err != nil {
		return nil, fmt.Errorf("make page: %w", err)
	}
	return b.Bytes(), nil
}

// Render is the page of a cluster as a document of its own.
func Render(v View) ([]byte, error) {
	p, err := parsePages()
	if err != nil {
		return nil, err
	}
	return p.render(v, noRefresh)
}

func newClusterPage(v View, refresh int) clusterPage {
	r := v.Report
	verdict := verdictState(r.Verdict)
	name := name(cmp.Or(r.ClusterName, "cluster"))
	p := clusterPage{
		head: newHead(verdict.Word+": "+name, r.Verdict, refresh), Name: name, Store: text(r.Store), At: clock(r.At),
		Sources: sources(v), Verdict: verdict, Summary: sentence(text(r.Summary)), Known: r.Formed != "unknown",
		Operation: newOperation(r), Ended: ended(r), Waiting: r.Waiting, Alarms: alarms(r),
	}
	for _, f := range r.Findings[:min(len(r.Findings), mostFindings)] {
		x := finding{State: verdictState(f.Severity), Text: capital(text(f.Text)), Command: text(f.Command),
			NoCommand: sentence(text(f.NoCommand))}
		if f.Command != "" {
			x.NoCommand = ""
		}
		if !f.Since.IsZero() {
			x.Since = "since " + clock(f.Since) + ", for " + age(r.At.Sub(f.Since))
		}
		p.Findings = append(p.Findings, x)
	}
	if n := len(r.Findings) - mostFindings; n > 0 {
		p.More = fmt.Sprintf("%d more are left out; etcd-manager-ctl status shows them.", n)
	}
	p.Waiting = nil
	for _, c := range r.Waiting[:min(len(r.Waiting), mostWaiting)] {
		p.Waiting = append(p.Waiting, health.Command{Name: text(c.Name), Kind: text(c.Kind), Backup: text(c.Backup), For: text(c.For)})
	}
	if !p.Known {
		return p
	}
	p.Facts = clusterFacts(r)
	p.Pictures = pictures(r)
	p.Timelines, p.Window, p.WindowBad, p.Gaps = timelines(r, v.Marks)
	p.BackupRows = backupFacts(r)
	p.Copies = copyFacts(r)
	p.Standbys = standbyFacts(r)
	p.Nodes = nodeRows(r)
	for _, e := range r.Endings[:min(len(r.Endings), mostEndings)] {
		p.Endings = append(p.Endings, newEnding(e))
	}
	for i := len(v.Events) - 1; i >= max(len(v.Events)-mostEvents, 0); i-- {
		p.Events = append(p.Events, fact{clock(v.Events[i].At), text(v.Events[i].Text)})
	}
	return p
}

// sources say who speaks, and how old that is.
func sources(v View) []string {
	r, list := v.Report, []string{}
	if v.Node != "" {
		list = append(list, "Shown by the manager of node "+name(string(v.Node)))
	}
	switch l := r.Leader; {
	case l == nil:
	case l.Current && l.Node == v.Node:
		list = append(list, "which leads")
	case l.Current:
		list = append(list, fmt.Sprintf("leader %s heard %s ago", name(string(l.Node)), seconds(l.AgeSeconds)))
	default:
		list = append(list, fmt.Sprintf("the last leader was %s, %s ago", name(string(l.Node)), seconds(l.AgeSeconds)))
	}
	switch {
	case v.Node == "":
	case v.StoreRead.IsZero():
		list = append(list, "the store was not read yet")
	default:
		list = append(list, fmt.Sprintf("store read %s ago", age(r.At.Sub(v.StoreRead))))
	}
	if !v.ManagerRead.IsZero() && r.At.Sub(v.ManagerRead) >= oldWord {
		list = append(list, fmt.Sprintf("this manager has said nothing for %s; a disk of this node may hang", age(r.At.Sub(v.ManagerRead))))
	}
	if v.StoreProblem != "" {
		list = append(list, "now the store can't be read: "+text(v.StoreProblem))
	}
	return list
}

func clusterFacts(r health.Report) []fact {
	members := "not known"
	if r.MembersKnown {
		members = fmt.Sprintf("%d healthy", r.MembersHealthy)
	}
	if r.MembersWanted > 0 {
		members += fmt.Sprintf(", %d wanted", r.MembersWanted)
	}
	list := []fact{{"Members", members}}
	version := strings.Join(r.Versions, ", ")
	if r.Spec != nil && r.Spec.EtcdVersion != "" && version != r.Spec.EtcdVersion {
		version = cmp.Or(version, "none runs") + ", wanted " + r.Spec.EtcdVersion
	}
	if version != "" {
		list = append(list, fact{"etcd", text(version)})
	}
	switch l := r.Leader; {
	case l == nil:
		list = append(list, fact{"Managers' leader", "none has ever written to this store"})
	case l.Current:
		list = append(list, fact{"Managers' leader", fmt.Sprintf("node %s, term %d", name(string(l.Node)), l.Term)})
	default:
		list = append(list, fact{"Managers' leader", fmt.Sprintf("none; the last was node %s, term %d", name(string(l.Node)), l.Term)})
	}
	if r.Doing != "" {
		list = append(list, fact{"Now", text(r.Doing)})
	}
	return list
}

func backupFacts(r health.Report) []fact {
	var list []fact
	if b := r.Backup; b != nil {
		words := age(time.Duration(b.AgeSeconds)*time.Second) + " old"
		if b.SizeBytes > 0 {
			words += ", " + size(b.SizeBytes)
		}
		if b.IntervalSeconds > 0 {
			words += ", one every " + seconds(b.IntervalSeconds)
		}
		if b.Stored > 0 {
			words += fmt.Sprintf(", %d in the store", b.Stored)
		}
		list = append(list, fact{"Newest backup", strings.TrimPrefix(text(b.Name)+": ", ": ") + words})
	} else if r.Formed == "yes" {
		list = append(list, fact{"Newest backup", "none is known"})
	}
	switch v := r.Verification; {
	case v == nil || v.Backup == "":
		if r.Formed == "yes" {
			list = append(list, fact{"Last verified", "none yet"})
		}
	case v.Bad != "":
		list = append(list, fact{"Last verified", fmt.Sprintf("%s is bad, found %s ago", text(v.Backup), seconds(v.AgeSeconds))})
	default:
		list = append(list, fact{"Last verified", fmt.Sprintf("%s is good, found %s ago", text(v.Backup), seconds(v.AgeSeconds))})
	}
	if a := r.Archive; a != nil && !a.Until.IsZero() {
		words := fmt.Sprintf("every change up to %s is in the store, %s behind", clock(a.Until), seconds(a.LagSeconds))
		if a.SpilledBytes > 0 {
			words += "; " + size(a.SpilledBytes) + " wait on the leader's disk"
		}
		list = append(list, fact{"Archive of changes", words})
	}
	return list
}

// alarms are etcd's own, by node.
func alarms(r health.Report) []string {
	var list []string
	for _, n := range r.Nodes {
		for _, a := range n.Alarms {
			if len(list) < mostFindings {
				list = append(list, fmt.Sprintf("%s of node %s", name(a), name(string(n.Node))))
			}
		}
	}
	return list
}
