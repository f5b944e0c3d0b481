package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// Errors to branch on.
var (
	// ErrNotCaughtUp: a learner can't be promoted yet; try again later.
	ErrNotCaughtUp = errors.New("learner has not caught up")
	// ErrNotLeader: the request must go to the member that is etcd's leader.
	ErrNotLeader = errors.New("member is not the etcd leader")
	// ErrNoLeader: the member knows no leader, so there is no quorum or an election is going on.
	ErrNoLeader = errors.New("no etcd leader")
	// ErrUnhealthyCluster: etcd refuses to change the membership because it would lose its quorum.
	ErrUnhealthyCluster = errors.New("etcd refuses: the change would endanger its quorum")
	// ErrTooManyLearners: there is a learner already.
	ErrTooManyLearners = errors.New("too many learners")
	// ErrNoMember: there is no member with that id.
	ErrNoMember = errors.New("no such member")
	// ErrOtherMember: another member answers than the one that was to be asked.
	ErrOtherMember = errors.New("another member answers")
	// ErrCompacted: the revision is no longer there.
	ErrCompacted = errors.New("revision is compacted")
	// ErrFutureRevision: the member isn't that far.
	ErrFutureRevision = errors.New("revision is in the future")
	// ErrUnsupported: the member's version doesn't know the request.
	ErrUnsupported = errors.New("not supported by this etcd version")
	// ErrDenied: etcd lives, and has users (auth enable) of whom this client isn't one that may do it.
	ErrDenied = errors.New("etcd has users (auth enable)")
)

// sentinels maps what etcd says to what callers branch on.
var sentinels = []struct{ from, to error }{
	{rpctypes.ErrMemberLearnerNotReady, ErrNotCaughtUp},
	{rpctypes.ErrNotLeader, ErrNotLeader},
	{rpctypes.ErrNoLeader, ErrNoLeader},
	{rpctypes.ErrLeaderChanged, ErrNoLeader},
	{rpctypes.ErrUnhealthy, ErrUnhealthyCluster},
	{rpctypes.ErrMemberNotEnoughStarted, ErrUnhealthyCluster},
	{rpctypes.ErrTooManyLearners, ErrTooManyLearners},
	{rpctypes.ErrMemberNotFound, ErrNoMember},
	{rpctypes.ErrCompacted, ErrCompacted},
	{rpctypes.ErrFutureRev, ErrFutureRevision},
	{rpctypes.Error(rpctypes.ErrGRPCNotSupportedForLearner), ErrUnsupported},
	{rpctypes.ErrPermissionDenied, ErrDenied},
	{rpctypes.ErrUserEmpty, ErrDenied},
	{rpctypes.ErrUserNotFound, ErrDenied},
}

// Client talks to one member. All methods are safe for concurrent use and honor the context's deadline;
// without a deadline they may wait for as long as the member is away.
type Client struct {
	c *clientv3.Client
	// stream is the connection for WatchAll; the same one unless Streams.Dial has made another.
	stream    *clientv3.Client
	endpoints []string
	tls       *tls.Config
	user      User // nobody without a name
	kv        etcdserverpb.KVClient
	members   etcdserverpb.ClusterClient
	maint     etcdserverpb.MaintenanceClient
}

// window is how many bytes may be on their way to a client. Named, it keeps gRPC from measuring the connection all the time, which costs a
// stream of small messages more than the messages do. At every quarter of it the client tells the member that it has read so far, which is what a
// smaller one costs a snapshot.
const window = 1 << 20

// readBuffer is how much is read of a connection at once, if so much is there.
const readBuffer = 128 << 10

// Dial prepares a client for one member, whose client URLs are the endpoints. It does no I/O: connecting
// is part of the first request, and of the first one after a loss. tlsConf is nil for plain HTTP; to use a
// renewed certificate without a new client, set its GetClientCertificate. Close must be called in the end.
func Dial(endpoints []string, tlsConf *tls.Config) (*Client, error) {
	return DialAs(endpoints, tlsConf, User{})
}

// DialAs is Dial for one of etcd's users with a password. A user without a name is who the certificate names, if etcd has users.
func DialAs(endpoints []string, tlsConf *tls.Config, user User) (*Client, error) {
	c, err := connect(endpoints, tlsConf, window, user.options()...)
	if err != nil {
		return nil, err
	}
	conn := c.ActiveConnection()
	return &Client{
		c: c, stream: c, endpoints: slices.Clone(endpoints), tls: tlsConf, user: user, kv: etcdserverpb.NewKVClient(conn),
		members: etcdserverpb.NewClusterClient(conn), maint: etcdserverpb.NewMaintenanceClient(conn),
	}, nil
}

// MemberEndpoints are the client URLs of one member with its machine's addresses in place of host names: a name that several members share
// resolves to any of them, on a master often to its own. Hosts that are addresses already stay. Without addresses nothing changes.
func MemberEndpoints(urls, addresses []string) []string {
	var out []string
	for _, s := range urls {
		u, err := url.Parse(s)
		if err != nil || len(addresses) == 0 || net.ParseIP(u.Hostname()) != nil {
			out = append(out, s)
			continue
		}
		for _, a := range addresses {
			at := *u
			at.Host = net.JoinHostPort(a, u.Port())
			if !slices.Contains(out, at.String()) {
				out = append(out, at.String())
			}
		}
	}
	return out
}

// IsMember makes sure that the client talks to that member and to no other one.
func (c *Client) IsMember(ctx context.Context, id cluster.MemberID) error {
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if st.MemberID != id {
		return fmt.Errorf("%w: member %s answers at %v, not %s; its client URLs have a name that several members share", ErrOtherMember, st.MemberID, c.endpoints, id)
	}
	return nil
}

// connect makes etcd's own client, to which window bytes may be on their way.
func connect(endpoints []string, tlsConf *tls.Config, window int32, more ...grpc.DialOption) (*clientv3.Client, error) {
	if len(endpoints) == 0 {
		return nil, errors.New("connect to etcd: no endpoint")
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints: endpoints,
		TLS:       tlsConf,
		Logger:    zap.NewNop(),
		// Retries are the caller's; a short back-off finds a member that is back quickly.
		BackoffWaitBetween: 25 * time.Millisecond,
		MaxUnaryRetries:    1,
		// An etcd that comes up is noticed at once; gRPC's own back-off begins with a second.
		DialOptions: append([]grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 25 * time.Millisecond, Multiplier: 1.3, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 3 * time.Second,
		}), grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window), grpc.WithReadBufferSize(readBuffer)}, more...),
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd: %w", err)
	}
	return c, nil
}

// Close ends all connections. It may be called more than once.
func (c *Client) Close() error {
	err := closed(c.c)
	if c.stream != c.c {
		err = errors.Join(err, closed(c.stream))
	}
	return err
}

func closed(c *clientv3.Client) error {
	if err := c.Close(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Raw is etcd's own client on the same connection, for watches, leases and the keys themselves.
func (c *Client) Raw() *clientv3.Client { return c.c }

// Endpoints returns what was given to Dial.
func (c *Client) Endpoints() []string { return slices.Clone(c.endpoints) }

// wrap explains an error and makes it recognizable.
func (c *Client) wrap(verb string, err error) error {
	if err == nil {
		return nil
	}
	err = rpctypes.Error(err)
	if errors.Is(err, errPassword) {
		return fmt.Errorf("%s at %s: %w, and the user %s can't log in: %w", verb, strings.Join(c.endpoints, ","), ErrDenied, c.user.Name, err)
	}
	for _, s := range sentinels {
		if errors.Is(err, s.from) {
			if s.to == ErrDenied {
				return fmt.Errorf("%s at %s: %w, and %s (%s)", verb, strings.Join(c.endpoints, ","), s.to, c.needs(), err.Error())
			}
			err = fmt.Errorf("%w (%s)", s.to, err.Error())
			break
		}
	}
	return fmt.Errorf("%s at %s: %w", verb, strings.Join(c.endpoints, ","), err)
}

// needs says what has to be done for this client where etcd has users. Its user is the common name of its certificate.
func (c *Client) needs() string {
	if name := c.user.Name; name != "" {
		return fmt.Sprintf("the user of this client, %s, needs the role root: etcdctl user grant-role %s root", name, name)
	}
	name := ""
	if c.tls != nil && c.tls.GetClientCertificate != nil {
		if cert, err := c.tls.GetClientCertificate(&tls.CertificateRequestInfo{}); err == nil {
			name = commonName(cert)
		}
	} else if c.tls != nil && len(c.tls.Certificates) > 0 {
		name = commonName(&c.tls.Certificates[0])
	}
	if name == "" {
		return "this client is none of them, as it shows no certificate with a common name"
	}
	return fmt.Sprintf("the user of this client, %s, needs the role root: etcdctl user add %s --no-password; etcdctl user grant-role %s root", name, name, name)
}

func commonName(c *tls.Certificate) string {
	leaf := c.Leaf
	if leaf == nil && len(c.Certificate) > 0 {
		leaf, _ = x509.ParseCertificate(c.Certificate[0])
	}
	if leaf == nil {
		return ""
	}
	return leaf.Subject.CommonName
}

// Permitted asks for what only a user with the role root may surely read. The answer needs a quorum, and so does ErrDenied: etcd checks
// permission after it has read from a quorum. A learner gives ErrUnsupported, users or not.
func (c *Client) Permitted(ctx context.Context) error {
	_, err := c.kv.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0, 0}, KeysOnly: true, Limit: 1})
	return c.wrap("read linearizably", err)
}

// Status is what a member says of itself.
type Status struct {
	Version string
	// StorageVersion is empty before 3.6.
	StorageVersion string
	ClusterID      uint64
	MemberID       cluster.MemberID
	// Leader is 0 if the member knows none.
	Leader       cluster.MemberID
	Revision     int64
	RaftTerm     uint64
	RaftIndex    uint64
	AppliedIndex uint64
	// DBSize, DBSizeInUse and DBQuota are in bytes; the quota is 0 where etcd doesn't tell (before 3.6).
	DBSize      int64
	DBSizeInUse int64
	DBQuota     int64
	Learner     bool
	// DowngradeTarget is the version for which etcd's downgrade is enabled; empty if it isn't, and always before 3.6.
	DowngradeTarget string
	// Errors are etcd's words, alarms among them.
	Errors []string
}

// Status asks the member, which answers without asking others.
func (c *Client) Status(ctx context.Context) (Status, error) {
	r, err := c.maint.Status(ctx, &etcdserverpb.StatusRequest{})
	if err != nil {
		return Status{}, c.wrap("read status", err)
	}
	target := ""
	if r.DowngradeInfo.GetEnabled() {
		target = r.DowngradeInfo.GetTargetVersion()
	}
	return Status{
		DowngradeTarget: target,
		Version:         r.Version, StorageVersion: r.StorageVersion,
		ClusterID: r.Header.GetClusterId(), MemberID: cluster.MemberID(r.Header.GetMemberId()), Leader: cluster.MemberID(r.Leader),
		Revision: r.Header.GetRevision(), RaftTerm: r.RaftTerm, RaftIndex: r.RaftIndex, AppliedIndex: r.RaftAppliedIndex,
		DBSize: r.DbSize, DBSizeInUse: r.DbSizeInUse, DBQuota: r.DbSizeQuota, Learner: r.IsLearner, Errors: r.Errors,
	}, nil
}

// Health is the outcome of a linearizable read, which needs a quorum.
type Health struct {
	Healthy bool
	// Reason says why not.
	Reason string
	// Alarms are raised somewhere in the cluster. NOSPACE does not make a member unhealthy: it still serves reads.
	Alarms []cluster.Alarm
	Took   time.Duration
}

// Health never fails: what goes wrong is the reason for not being healthy. A learner, which can't serve
// such a read, is healthy if it knows a leader.
func (c *Client) Health(ctx context.Context) Health {
	start := time.Now()
	h := Health{}
	_, err := c.kv.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte("health"), KeysOnly: true, Limit: 1})
	h.Took = time.Since(start)
	err = c.wrap("read linearizably", err)
	switch {
	case errors.Is(err, ErrUnsupported):
		st, serr := c.Status(ctx)
		h.Healthy = serr == nil && st.Leader != 0
		if serr != nil {
			h.Reason = serr.Error()
		} else if st.Leader == 0 {
			h.Reason = "the learner knows no leader"
		}
	case err != nil && !errors.Is(err, ErrDenied):
		h.Reason = err.Error()
		return h
	default:
		h.Healthy = true
	}
	alarms, err := c.Alarms(ctx)
	if err != nil {
		return h // the read is what counts; alarms are seen again at the next check
	}
	h.Alarms = alarms
	for _, a := range alarms {
		if a.Type == cluster.AlarmCorrupt {
			h.Healthy = false
			h.Reason = fmt.Sprintf("member %s has the alarm CORRUPT", a.Member)
		}
	}
	return h
}

// HashKV hashes up to a revision; 0 means the member's newest, and Revision of the result is then the one that was meant.
// It reads the whole database of that member.
func (c *Client) HashKV(ctx context.Context, rev int64) (etcd.HashKV, error) {
	r, err := c.maint.HashKV(ctx, &etcdserverpb.HashKVRequest{Revision: rev})
	if err != nil {
		err = c.wrap("hash keys", err)
		if errors.Is(err, ErrCompacted) && rev > 0 {
			return c.hashNewest(ctx, rev, err)
		}
		return etcd.HashKV{}, err
	}
	if r.HashRevision != 0 {
		rev = r.HashRevision // 3.6 and later
	} else if rev == 0 {
		rev = r.Header.GetRevision()
	}
	return etcd.HashKV{Revision: rev, CompactRevision: r.CompactRevision, Hash: r.Hash}, nil
}

// hashNewest is for 3.4 and early 3.5, which refuse a revision that is itself the compacted one, though that is
// what a restored store has. Asked for the newest they answer.
func (c *Client) hashNewest(ctx context.Context, rev int64, refused error) (etcd.HashKV, error) {
	st, err := c.Status(ctx)
	if err != nil || st.Revision != rev {
		return etcd.HashKV{}, refused
	}
	h, err := c.HashKV(ctx, 0)
	if err != nil || h.Revision != rev {
		return etcd.HashKV{}, refused
	}
	return h, nil
}

// Compact drops the history before rev. physical waits until that is done in the database. What is compacted already is success.
func (c *Client) Compact(ctx context.Context, rev int64, physical bool) error {
	_, err := c.kv.Compact(ctx, &etcdserverpb.CompactionRequest{Revision: rev, Physical: physical})
	err = c.wrap("compact", err)
	if errors.Is(err, ErrCompacted) {
		return nil
	}
	return err
}

// Defragment rewrites the member's database; the member answers nobody meanwhile.
func (c *Client) Defragment(ctx context.Context) error {
	_, err := c.maint.Defragment(ctx, &etcdserverpb.DefragmentRequest{})
	return c.wrap("defragment", err)
}

// Alarms lists what is raised in the cluster, as this member knows it.
func (c *Client) Alarms(ctx context.Context) ([]cluster.Alarm, error) {
	r, err := c.maint.Alarm(ctx, &etcdserverpb.AlarmRequest{Action: etcdserverpb.AlarmRequest_GET})
	if err != nil {
		return nil, c.wrap("read alarms", err)
	}
	var out []cluster.Alarm
	for _, a := range r.Alarms {
		out = append(out, cluster.Alarm{Member: cluster.MemberID(a.MemberID), Type: cluster.AlarmType(a.Alarm.String())})
	}
	return out, nil
}

// Raise raises an alarm. One that is raised already is success.
func (c *Client) Raise(ctx context.Context, a cluster.Alarm) error {
	t, ok := etcdserverpb.AlarmType_value[string(a.Type)]
	if !ok {
		return fmt.Errorf("raise: unknown alarm %q", a.Type)
	}
	_, err := c.maint.Alarm(ctx, &etcdserverpb.AlarmRequest{
		Action: etcdserverpb.AlarmRequest_ACTIVATE, MemberID: uint64(a.Member), Alarm: etcdserverpb.AlarmType(t),
	})
	return c.wrap("raise", err)
}

// Disarm takes one alarm back. One that isn't raised is success.
func (c *Client) Disarm(ctx context.Context, a cluster.Alarm) error {
	t, ok := etcdserverpb.AlarmType_value[string(a.Type)]
	if !ok {
		return fmt.Errorf("disarm: unknown alarm %q", a.Type)
	}
	_, err := c.maint.Alarm(ctx, &etcdserverpb.AlarmRequest{
		Action: etcdserverpb.AlarmRequest_DEACTIVATE, MemberID: uint64(a.Member), Alarm: etcdserverpb.AlarmType(t),
	})
	return c.wrap("disarm", err)
}

// MoveLeader hands etcd's leadership over. It must be sent to the leader, else ErrNotLeader.
func (c *Client) MoveLeader(ctx context.Context, to cluster.MemberID) error {
	_, err := c.maint.MoveLeader(ctx, &etcdserverpb.MoveLeaderRequest{TargetID: uint64(to)})
	return c.wrap("move leader", err)
}

// DowngradeAction is a step of etcd's own downgrade (one minor version down, from 3.6 on; 3.5 can only validate).
type DowngradeAction int

// The steps of a downgrade.
const (
	DowngradeValidate DowngradeAction = iota
	DowngradeEnable
	DowngradeCancel
)

// Downgrade prepares the cluster for members of the previous minor version, or takes that back. version is
// the target's ("3.5" or "3.5.26"); etcd wants only its minor part. Enabling what is enabled, and canceling
// what isn't, is success.
func (c *Client) Downgrade(ctx context.Context, action DowngradeAction, version string) error {
	req := &etcdserverpb.DowngradeRequest{}
	switch action {
	case DowngradeValidate:
		req.Action = etcdserverpb.DowngradeRequest_VALIDATE
	case DowngradeEnable:
		req.Action = etcdserverpb.DowngradeRequest_ENABLE
	case DowngradeCancel:
		req.Action = etcdserverpb.DowngradeRequest_CANCEL
	default:
		return fmt.Errorf("downgrade: unknown action %d", action)
	}
	if action != DowngradeCancel {
		m := etcd.Minor(version)
		if m == "" {
			m = etcd.Minor(version + ".0")
		}
		if m == "" {
			return fmt.Errorf("downgrade: %w: %q", etcd.ErrVersion, version)
		}
		req.Version = m + ".0"
	}
	_, err := c.maint.Downgrade(ctx, req)
	if err != nil {
		e := rpctypes.Error(err)
		if action == DowngradeEnable && errors.Is(e, rpctypes.ErrDowngradeInProcess) ||
			action == DowngradeCancel && errors.Is(e, rpctypes.ErrNoInflightDowngrade) {
			return nil
		}
	}
	return c.wrap("downgrade", err)
}
