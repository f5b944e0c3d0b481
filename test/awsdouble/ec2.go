// Package awsdouble stands in for AWS in tests: exactly the calls of EC2 and of the instance
// metadata that etcd-manager makes, over HTTP and in their own wire protocols, for the real SDK to
// talk to. What a test wants to see go wrong is switchable: answers that are old, throttling, slow
// or stuck attachments, missing permissions.
//
// It is for tests only. README.md says where each behavior was taken from, and where the double is simpler than AWS.
package awsdouble

import (
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Volume is an EBS volume.
type Volume struct {
	ID, Zone, Type, Key string
	SizeGiB             int
	// IOPS and Throughput are what EC2 tells of them, for types that have none to be set, too.
	IOPS, Throughput int
	Encrypted        bool
	// State is creating, available, in-use, deleting or error.
	State      string
	Attachment *Attachment
	Tags       map[string]string
	Created    time.Time
}

// Attachment is where a volume is. State is attaching, attached, detaching or busy.
type Attachment struct{ Instance, Device, State string }

// Instance is an EC2 instance.
type Instance struct {
	ID, Zone, IPv4, IPv6, RootDevice, State string
}

// Fault is an error that is answered instead of doing what was asked.
type Fault struct {
	Status        int
	Code, Message string
}

// Throttled is what EC2 says to who asks too often.
func Throttled() Fault {
	return Fault{http.StatusServiceUnavailable, "RequestLimitExceeded", "Request limit exceeded."}
}

// Denied is what EC2 says to who lacks the permission for an action.
func Denied(action string) Fault {
	return Fault{http.StatusForbidden, "UnauthorizedOperation",
		"You are not authorized to perform this operation. User: arn:aws:sts::111122223333:assumed-role/masters/i-0 is not authorized to perform: ec2:" + action + " because no identity-based policy allows the ec2:" + action + " action"}
}

// Behavior says how the double behaves. The zero value is a cloud without delays or faults.
type Behavior struct {
	// Lag is how old the answers of Describe calls are.
	Lag time.Duration
	// AttachDelay and DetachDelay are how long a volume is attaching and detaching.
	AttachDelay, DetachDelay time.Duration
	// PageSize is how many items a Describe call returns at once; 0 means all.
	PageSize int
	// StuckOn lists instances from which volumes aren't detached but by force.
	StuckOn []string
	// ModifyDelay is how long a changed volume is described as it was.
	ModifyDelay time.Duration
	// UnusableKeys are KMS keys that the instances' role may not use: attachments of volumes with them are taken back.
	UnusableKeys []string
}

// Hooks make what happens in the cloud happen on the machine. They are called without locks held,
// and before the state changes; an error keeps the volume attaching or detaching.
type Hooks struct {
	Attach func(v Volume, instance, device string) error
	Detach func(v Volume, instance string) error
	// Create is called for a volume that is created by a call.
	Create func(v Volume) error
}

// world is the state at one moment.
type world struct {
	at        time.Time
	volumes   map[string]Volume
	instances map[string]Instance
}

func (w *world) clone() world {
	c := world{at: time.Now(), volumes: map[string]Volume{}, instances: map[string]Instance{}}
	for id, v := range w.volumes {
		if v.Attachment != nil {
			a := *v.Attachment
			v.Attachment = &a
		}
		tags := map[string]string{}
		for k, t := range v.Tags {
			tags[k] = t
		}
		v.Tags = tags
		c.volumes[id] = v
	}
	for id, i := range w.instances {
		c.instances[id] = i
	}
	return c
}

// Cloud is one region. All methods may be called concurrently.
type Cloud struct {
	Region, Account string

	hooks Hooks

	mu       sync.Mutex
	now      world
	past     []world
	behavior Behavior
	denied   map[string]bool
	faults   map[string][]Fault
	calls    []string
	serial   int
	// tokens of requests for volumes, and which ones they got.
	tokens map[string]string
	// modifications are under way, by volume.
	modifications map[string]Volume
}

// New returns an empty region.
func New(hooks Hooks) *Cloud {
	return &Cloud{
		Region: "us-east-1", Account: "111122223333", hooks: hooks, denied: map[string]bool{},
		faults: map[string][]Fault{}, modifications: map[string]Volume{},
		tokens: map[string]string{},
		now:    world{volumes: map[string]Volume{}, instances: map[string]Instance{}},
	}
}

// change changes the state under the lock.
func (c *Cloud) change(f func(w *world)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.past = append(c.past, c.now.clone())
	c.past[len(c.past)-1].at = c.now.at
	if len(c.past) > 1000 {
		c.past = c.past[500:]
	}
	f(&c.now)
	c.now.at = time.Now()
}

// Behave changes how the double behaves from now on.
func (c *Cloud) Behave(f func(b *Behavior)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.behavior)
}

// Deny takes the permission for an action of EC2 (without "ec2:") away, or gives it back.
func (c *Cloud) Deny(action string, deny bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.denied[action] = deny
}

// Fail answers the next calls of an action with these faults, one after the other.
func (c *Cloud) Fail(action string, faults ...Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults[action] = append(c.faults[action], faults...)
}

// Calls lists the actions that were asked for so far.
func (c *Cloud) Calls() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.calls)
}

// AddInstance makes an instance, with a root volume that is attached.
func (c *Cloud) AddInstance(i Instance) {
	if i.RootDevice == "" {
		i.RootDevice = "/dev/xvda"
	}
	if i.State == "" {
		i.State = "running"
	}
	c.change(func(w *world) { w.instances[i.ID] = i })
}

// SetInstanceState changes what EC2 says about an instance and nothing else.
func (c *Cloud) SetInstanceState(id, state string) {
	c.change(func(w *world) {
		i := w.instances[id]
		i.State = state
		w.instances[id] = i
	})
}

// AddVolume makes a volume.
func (c *Cloud) AddVolume(v Volume) {
	if v.State == "" {
		v.State = "available"
	}
	if v.Attachment != nil {
		v.State = "in-use"
	}
	v.Created = time.Now()
	c.change(func(w *world) { w.volumes[v.ID] = v })
}

// Volume returns a volume as it is now.
func (c *Cloud) Volume(id string) (Volume, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.now.clone().volumes[id]
	return v, ok
}

// RemoveVolume deletes a volume, as somebody else would.
func (c *Cloud) RemoveVolume(id string) {
	c.change(func(w *world) { delete(w.volumes, id) })
}

// Volumes returns all of them as they are now, sorted by id.
func (c *Cloud) Volumes() []Volume {
	c.mu.Lock()
	defer c.mu.Unlock()
	return sorted(c.now.clone().volumes)
}

func sorted(m map[string]Volume) []Volume {
	var list []Volume
	for _, v := range m {
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b Volume) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// Terminate ends an instance as EC2 does: its volumes are detached and stay.
func (c *Cloud) Terminate(id string) {
	c.SetInstanceState(id, "shutting-down")
	for _, v := range c.Volumes() {
		if v.Attachment != nil && v.Attachment.Instance == id {
			c.startDetach(v, false)
		}
	}
	c.SetInstanceState(id, "terminated")
}

// read is the state that Describe calls see.
func (c *Cloud) read() world {
	c.mu.Lock()
	defer c.mu.Unlock()
	until := time.Now().Add(-c.behavior.Lag)
	w := &c.now
	for i := len(c.past) - 1; i >= 0 && w.at.After(until); i-- {
		w = &c.past[i]
	}
	return w.clone()
}

// ServeHTTP answers EC2's query protocol.
func (c *Cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		writeFault(w, Fault{http.StatusBadRequest, "MalformedQueryString", err.Error()})
		return
	}
	if !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential=") {
		writeFault(w, Fault{http.StatusUnauthorized, "AuthFailure", "AWS was not able to validate the provided access credentials"})
		return
	}
	action := r.Form.Get("Action")
	c.mu.Lock()
	c.calls = append(c.calls, action)
	fault, failed := Denied(action), c.denied[action]
	if list := c.faults[action]; !failed && len(list) > 0 {
		fault, failed = list[0], true
		c.faults[action] = list[1:]
	}
	c.mu.Unlock()
	if !failed && r.Form.Get("DryRun") == "true" {
		fault, failed = Fault{http.StatusPreconditionFailed, "DryRunOperation", "Request would have succeeded, but DryRun flag is set."},
			true
	}
	if failed {
		writeFault(w, fault)
		return
	}
	var answer any
	var err *Fault
	switch action {
	case "DescribeVolumes":
		answer, err = c.describeVolumes(r.Form)
	case "DescribeInstances":
		answer, err = c.describeInstances(r.Form)
	case "AttachVolume":
		answer, err = c.attachVolume(r.Form)
	case "DetachVolume":
		answer, err = c.detachVolume(r.Form)
	case "CreateVolume":
		answer, err = c.createVolume(r.Form)
	case "ModifyVolume":
		answer, err = c.modifyVolume(r.Form)
	case "DescribeVolumesModifications":
		answer, err = c.describeModifications(r.Form)
	case "DeleteVolume":
		answer, err = c.deleteVolume(r.Form)
	case "CreateTags", "DeleteTags":
		answer, err = c.changeTags(action, r.Form)
	default:
		err = &Fault{http.StatusBadRequest, "InvalidAction", "The action " + action + " is not valid for this web service."}
	}
	if err != nil {
		writeFault(w, *err)
		return
	}
	writeXML(w, http.StatusOK, xml.StartElement{
		Name: xml.Name{Local: action + "Response"},
		Attr: []xml.Attr{{Name: xml.Name{Local: "xmlns"}, Value: "http://ec2.amazonaws.com/doc/2016-11-15/"}},
	}, answer)
}

func writeXML(w http.ResponseWriter, status int, start xml.StartElement, v any) {
	w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(xml.Header))
	_ = xml.NewEncoder(w).EncodeElement(v, start)
}

func writeFault(w http.ResponseWriter, f Fault) {
	type item struct {
		Code    string `xml:"Code"`
		Message string `xml:"Message"`
	}
	writeXML(w, f.Status, xml.StartElement{Name: xml.Name{Local: "Response"}}, struct {
		Errors    []item `xml:"Errors>Error"`
		RequestID string `xml:"RequestID"`
	}{[]item{{f.Code, f.Message}}, "00000000-0000-0000-0000-000000000000"})
}

// listOf reads Name.1, Name.2, … of a form.
func listOf(f url.Values, name string) []string {
	var list []string
	for n := 1; f.Has(fmt.Sprintf("%s.%d", name, n)); n++ {
		list = append(list, f.Get(fmt.Sprintf("%s.%d", name, n)))
	}
	return list
}

// tagsOf reads prefix.1.Key, prefix.1.Value, …
func tagsOf(f url.Values, prefix string) map[string]string {
	tags := map[string]string{}
	for n := 1; f.Has(fmt.Sprintf("%s.%d.Key", prefix, n)); n++ {
		tags[f.Get(fmt.Sprintf("%s.%d.Key", prefix, n))] = f.Get(fmt.Sprintf("%s.%d.Value", prefix, n))
	}
	return tags
}

// page cuts one page out of n items and returns its bounds and the token of the next.
func (c *Cloud) page(f url.Values, n int) (from, to int, next string) {
	c.mu.Lock()
	size := c.behavior.PageSize
	c.mu.Unlock()
	from, _ = strconv.Atoi(f.Get("NextToken"))
	from = min(from, n)
	to = n
	if size > 0 && from+size < n {
		to = from + size
		next = strconv.Itoa(to)
	}
	return from, to, next
}
