package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Phase says how far the forming of the cluster is.
type Phase string

const (
	// PhaseForming: founders, token and spec are settled, but no client was let in yet.
	PhaseForming Phase = "forming"
	// PhaseFormed: the cluster exists; never form one again. Markers of other tools mean this.
	PhaseFormed Phase = "formed"
)

// Marker is the object that says that a cluster was, or is being, created for this store.
type Marker struct {
	// Time is when it was first created.
	Time time.Time
	// Phase is never empty after a read.
	Phase Phase
	// Token, Founders and Spec are what is being formed; empty in a marker of another tool.
	Token    cluster.Token
	Founders []cluster.EtcdNode
	Spec     cluster.Spec
	// Term and Leader are the leadership that wrote it.
	Term   cluster.Term
	Leader cluster.NodeID
}

const (
	markerVersion = 1
	markerWay     = "if the cluster exists, store {\"timestamp\":1} there; only if it never existed, delete the object"
)

// markerJSON is the stored form. Other tools read and write the timestamp alone.
type markerJSON struct {
	Timestamp nanos          `json:"timestamp"`
	Version   int            `json:"version,omitempty"`
	Phase     Phase          `json:"phase,omitempty"`
	Token     cluster.Token  `json:"token,omitempty"`
	Founders  []nodeJSON     `json:"founders,omitempty"`
	Spec      *specJSON      `json:"spec,omitempty"`
	Term      cluster.Term   `json:"term,omitempty"`
	Leader    cluster.NodeID `json:"leader,omitempty"`
}

// Marker reads the created marker and its version. Three answers are three different things: ErrNotFound (it was never
// created), cluster.ErrCorrupt or cluster.ErrFuture (it was, but what it says is lost or not known), any other error (nothing is known).
func (c *Catalog) Marker(ctx context.Context) (Marker, string, error) {
	data, info, err := c.read(ctx, markerKey, markerWay)
	if err != nil {
		return Marker{}, info.Version, err
	}
	m, err := parseMarker(data)
	return m, info.Version, err
}

// CreateMarker writes the marker if there is none, and fails with ErrConflict if there is.
func (c *Catalog) CreateMarker(ctx context.Context, m Marker) (version string, err error) {
	return c.putMarker(ctx, m, blob.PutOptions{IfAbsent: true})
}

// ReplaceMarker writes the marker if the stored one still has the given version, and fails with ErrConflict if not.
func (c *Catalog) ReplaceMarker(ctx context.Context, m Marker, version string) (newVersion string, err error) {
	opts, err := ifVersion(markerKey, version)
	if err != nil {
		return "", err
	}
	return c.putMarker(ctx, m, opts)
}

func (c *Catalog) putMarker(ctx context.Context, m Marker, opts blob.PutOptions) (string, error) {
	if m.Phase != PhaseForming && m.Phase != PhaseFormed {
		return "", invalidf("write %s: phase %q is not known", markerKey, m.Phase)
	}
	if m.Time.IsZero() {
		m.Time = c.now()
	}
	j := markerJSON{Timestamp: nanos(m.Time.UnixNano()), Version: markerVersion, Phase: m.Phase, Token: m.Token,
		Founders: nodesToJSON(m.Founders), Term: m.Term, Leader: m.Leader}
	if m.Spec != (cluster.Spec{}) {
		j.Spec = &specJSON{m.Spec.MemberCount, m.Spec.EtcdVersion}
	}
	data, err := json.Marshal(j)
	if err != nil {
		return "", fmt.Errorf("encode marker: %w", err)
	}
	return c.writeOwn(ctx, markerKey, data, opts, func(stored []byte) bool {
		was, err := parseMarker(stored)
		return err == nil && was.Term == m.Term && was.Leader == m.Leader && was.Token == m.Token && m.Leader != "" && m.Token != "" &&
			(m.Phase == PhaseFormed || was.Phase == PhaseForming)
	})
}

func parseMarker(data []byte) (Marker, error) {
	var j *markerJSON
	if err := json.Unmarshal(data, &j); err != nil {
		return Marker{}, corrupt(markerKey, markerWay, err)
	}
	if j == nil {
		return Marker{}, corrupt(markerKey, markerWay, errors.New("it is not a JSON object"))
	}
	if j.Version > markerVersion {
		return Marker{}, &ObjectError{Object: markerKey, Kind: cluster.ErrFuture,
			Err: fmt.Errorf("it has format version %d, this program knows up to %d", j.Version, markerVersion), Way: futureWay}
	}
	m := Marker{Time: time.Unix(0, int64(j.Timestamp)).UTC(), Phase: j.Phase, Token: j.Token,
		Founders: nodesFromJSON(j.Founders), Term: j.Term, Leader: j.Leader}
	if err := checkMembers(m.Founders); err != nil {
		return Marker{}, corrupt(markerKey, markerWay, err)
	}
	if j.Spec != nil {
		m.Spec = cluster.Spec{MemberCount: j.Spec.MemberCount, EtcdVersion: j.Spec.EtcdVersion}
	}
	switch m.Phase {
	case "":
		m.Phase = PhaseFormed
	case PhaseFormed:
	case PhaseForming:
		if m.Token == "" || len(m.Founders) == 0 {
			return Marker{}, corrupt(markerKey, markerWay, errors.New("it says forming, but not with which token and founders"))
		}
	default:
		return Marker{}, &ObjectError{Object: markerKey, Kind: cluster.ErrFuture,
			Err: fmt.Errorf("phase %q is not known", m.Phase), Way: futureWay}
	}
	return m, nil
}

// nanos is a time in nanoseconds, written as a number and read as a number or a string.
type nanos int64

// UnmarshalJSON accepts 1516000000000000000 and "1516000000000000000".
func (n *nanos) UnmarshalJSON(data []byte) error {
	s := string(data)
	if len(s) >= 2 && s[0] == '"' {
		if err := json.Unmarshal(data, &s); err != nil {
			return err
		}
	}
	if s == "null" {
		return nil
	}
	if v, err := strconv.ParseInt(s, 10, 64); err == nil {
		*n = nanos(v)
		return nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f < 0 || f >= 1<<63 {
		return fmt.Errorf("timestamp %s is not a number of nanoseconds", data)
	}
	*n = nanos(f)
	return nil
}

// specJSON is a spec inside one of this project's own objects.
type specJSON struct {
	MemberCount int    `json:"memberCount,omitempty"`
	EtcdVersion string `json:"etcdVersion,omitempty"`
}

// nodeJSON is an etcd member inside one of this project's own objects.
type nodeJSON struct {
	Name                  string   `json:"name"`
	PeerURLs              []string `json:"peerUrls,omitempty"`
	ClientURLs            []string `json:"clientUrls,omitempty"`
	QuarantinedClientURLs []string `json:"quarantinedClientUrls,omitempty"`
	TLS                   bool     `json:"tlsEnabled,omitempty"`
}

func nodesToJSON(nodes []cluster.EtcdNode) []nodeJSON {
	var out []nodeJSON
	for _, n := range nodes {
		out = append(out, nodeJSON(n.Clone()))
	}
	return out
}

// checkMembers refuses names that could not be a file's.
func checkMembers(nodes []cluster.EtcdNode) error {
	for _, n := range nodes {
		if err := cluster.CheckNodeName(n.Name); err != nil {
			return err
		}
	}
	return nil
}

func nodesFromJSON(nodes []nodeJSON) []cluster.EtcdNode {
	var out []cluster.EtcdNode
	for _, n := range nodes {
		out = append(out, cluster.EtcdNode(n))
	}
	return out
}
