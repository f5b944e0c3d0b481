package awsdouble

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

type attachmentXML struct {
	VolumeID   string `xml:"volumeId"`
	InstanceID string `xml:"instanceId"`
	Device     string `xml:"device"`
	Status     string `xml:"status"`
	AttachTime string `xml:"attachTime"`
}

type tagXML struct {
	Key   string `xml:"key"`
	Value string `xml:"value"`
}

type volumeXML struct {
	VolumeID    string          `xml:"volumeId"`
	Size        int             `xml:"size"`
	SnapshotID  string          `xml:"snapshotId"`
	Zone        string          `xml:"availabilityZone"`
	Status      string          `xml:"status"`
	CreateTime  string          `xml:"createTime"`
	Attachments []attachmentXML `xml:"attachmentSet>item"`
	Tags        []tagXML        `xml:"tagSet>item"`
	VolumeType  string          `xml:"volumeType"`
	Encrypted   bool            `xml:"encrypted"`
	KmsKeyID    string          `xml:"kmsKeyId,omitempty"`
	Iops        int             `xml:"iops,omitempty"`
	Throughput  int             `xml:"throughput,omitempty"`
}

func toXML(v Volume) volumeXML {
	x := volumeXML{VolumeID: v.ID, Size: v.SizeGiB, Zone: v.Zone, Status: v.State,
		CreateTime: v.Created.UTC().Format(time.RFC3339), VolumeType: v.Type, Encrypted: v.Encrypted, KmsKeyID: v.Key,
		Iops: v.IOPS, Throughput: v.Throughput}
	if a := v.Attachment; a != nil {
		x.Attachments = []attachmentXML{{v.ID, a.Instance, a.Device, a.State, time.Now().UTC().Format(time.RFC3339)}}
	}
	for k, t := range v.Tags {
		x.Tags = append(x.Tags, tagXML{k, t})
	}
	slices.SortFunc(x.Tags, func(a, b tagXML) int { return strings.Compare(a.Key, b.Key) })
	return x
}

// matches evaluates the filters of DescribeVolumes: all of them, each by any of its values.
func matches(f url.Values, v Volume) (bool, *Fault) {
	for n := 1; f.Has(fmt.Sprintf("Filter.%d.Name", n)); n++ {
		name, values := f.Get(fmt.Sprintf("Filter.%d.Name", n)), listOf(f, fmt.Sprintf("Filter.%d.Value", n))
		var ok bool
		switch key, isTag := strings.CutPrefix(name, "tag:"); {
		case isTag:
			value, has := v.Tags[key]
			ok = has && slices.Contains(values, value)
		case name == "tag-key":
			ok = slices.ContainsFunc(values, func(k string) bool { _, has := v.Tags[k]; return has })
		case name == "availability-zone":
			ok = slices.Contains(values, v.Zone)
		default:
			return false, &Fault{http.StatusBadRequest, "InvalidParameterValue", "The filter '" + name + "' is invalid"}
		}
		if !ok {
			return false, nil
		}
	}
	return true, nil
}

func noVolume(id string) *Fault {
	return &Fault{http.StatusBadRequest, "InvalidVolume.NotFound", "The volume '" + id + "' does not exist."}
}

func (c *Cloud) describeVolumes(f url.Values) (any, *Fault) {
	w := c.read()
	ids := listOf(f, "VolumeId")
	for _, id := range ids {
		if _, ok := w.volumes[id]; !ok {
			return nil, noVolume(id)
		}
	}
	var list []volumeXML
	for _, v := range sorted(w.volumes) {
		ok, fault := matches(f, v)
		if fault != nil {
			return nil, fault
		}
		if ok && (len(ids) == 0 || slices.Contains(ids, v.ID)) {
			list = append(list, toXML(v))
		}
	}
	from, to, next := c.page(f, len(list))
	return struct {
		RequestID string      `xml:"requestId"`
		Volumes   []volumeXML `xml:"volumeSet>item"`
		NextToken string      `xml:"nextToken,omitempty"`
	}{"r", list[from:to], next}, nil
}

func (c *Cloud) attachVolume(f url.Values) (any, *Fault) {
	id, instance, device := f.Get("VolumeId"), f.Get("InstanceId"), f.Get("Device")
	var fault *Fault
	var v Volume
	var delay time.Duration
	c.change(func(w *world) {
		var ok bool
		if v, ok = w.volumes[id]; !ok {
			fault = noVolume(id)
			return
		}
		i, ok := w.instances[instance]
		switch {
		case !ok:
			fault = &Fault{http.StatusBadRequest, "InvalidInstanceID.NotFound", "The instance ID '" + instance + "' does not exist"}
		case i.Zone != v.Zone:
			fault = &Fault{http.StatusBadRequest, "InvalidVolume.ZoneMismatch",
				"The volume '" + id + "' is not in the same availability zone as instance '" + instance + "'"}
		case v.Attachment != nil:
			fault = &Fault{http.StatusBadRequest, "VolumeInUse", fmt.Sprintf("%s is already attached to an instance", id)}
		case v.State != "available":
			fault = &Fault{http.StatusBadRequest, "IncorrectState", fmt.Sprintf("Volume '%s' is not 'available'.", id)}
		case device == i.RootDevice || taken(w, instance, device):
			fault = &Fault{http.StatusBadRequest, "InvalidParameterValue",
				fmt.Sprintf("Invalid value '%s' for unixDevice. Attachment point %s is already in use", device, device)}
		}
		if fault == nil {
			v.State, v.Attachment = "in-use", &Attachment{instance, device, "attaching"}
			w.volumes[id] = v
			delay = c.behavior.AttachDelay
		}
	})
	if fault != nil {
		return nil, fault
	}
	time.AfterFunc(delay, func() { c.finishAttach(id, instance, device) })
	return attachmentXML{id, instance, device, "attaching", time.Now().UTC().Format(time.RFC3339)}, nil
}

func taken(w *world, instance, device string) bool {
	for _, v := range w.volumes {
		if v.Attachment != nil && v.Attachment.Instance == instance && v.Attachment.Device == device {
			return true
		}
	}
	return false
}

func (c *Cloud) finishAttach(id, instance, device string) {
	v, ok := c.Volume(id)
	if !ok || v.Attachment == nil || v.Attachment.State != "attaching" {
		return
	}
	c.mu.Lock()
	unusable := slices.Contains(c.behavior.UnusableKeys, v.Key) && v.Key != ""
	c.mu.Unlock()
	if !unusable && c.hooks.Attach != nil && c.hooks.Attach(v, instance, device) != nil {
		return
	}
	c.change(func(w *world) {
		v := w.volumes[id]
		if unusable {
			v.State, v.Attachment = "available", nil
		} else if v.Attachment != nil {
			v.Attachment.State = "attached"
		}
		w.volumes[id] = v
	})
}

func (c *Cloud) detachVolume(f url.Values) (any, *Fault) {
	id, instance := f.Get("VolumeId"), f.Get("InstanceId")
	v, ok := c.Volume(id)
	switch {
	case !ok:
		return nil, noVolume(id)
	case v.Attachment == nil || instance != "" && v.Attachment.Instance != instance:
		return nil, &Fault{http.StatusBadRequest, "IncorrectState", fmt.Sprintf("Volume '%s' is in the 'available' state.", id)}
	}
	a := *v.Attachment
	c.startDetach(v, f.Get("Force") == "true")
	return attachmentXML{id, a.Instance, a.Device, "detaching", time.Now().UTC().Format(time.RFC3339)}, nil
}

func (c *Cloud) startDetach(v Volume, force bool) {
	instance := v.Attachment.Instance
	var delay time.Duration
	stuck := false
	c.change(func(w *world) {
		v := w.volumes[v.ID]
		if v.Attachment != nil {
			v.Attachment = &Attachment{v.Attachment.Instance, v.Attachment.Device, "detaching"}
		}
		w.volumes[v.ID] = v
		delay, stuck = c.behavior.DetachDelay, slices.Contains(c.behavior.StuckOn, instance) && !force
	})
	if stuck {
		return
	}
	time.AfterFunc(delay, func() {
		if c.hooks.Detach != nil && c.hooks.Detach(v, instance) != nil {
			return
		}
		c.change(func(w *world) {
			v := w.volumes[v.ID]
			v.State, v.Attachment = "available", nil
			w.volumes[v.ID] = v
		})
	})
}

func (c *Cloud) createVolume(f url.Values) (any, *Fault) {
	v := Volume{Zone: f.Get("AvailabilityZone"), Type: f.Get("VolumeType"), Key: f.Get("KmsKeyId"),
		Encrypted: f.Get("Encrypted") == "true", State: "available", Tags: map[string]string{}, Created: time.Now()}
	numbers(f, &v)
	switch {
	case v.Zone == "" || v.SizeGiB == 0:
		return nil, &Fault{http.StatusBadRequest, "MissingParameter", "The request must contain the parameter size or snapshotId, and zone"}
	case v.Key != "" && !v.Encrypted:
		return nil, &Fault{http.StatusBadRequest, "InvalidParameterDependency",
			"The parameter KmsKeyId requires the parameter Encrypted to be set."}
	}
	if v.Encrypted && v.Key == "" {
		v.Key = fmt.Sprintf("arn:aws:kms:%s:%s:key/aws-ebs-default", c.Region, c.Account)
	}
	if v.Type == "" {
		v.Type = "gp2"
	}
	if fault := v.settle(); fault != nil {
		return nil, fault
	}
	for n := 1; f.Has(fmt.Sprintf("TagSpecification.%d.ResourceType", n)); n++ {
		for k, t := range tagsOf(f, fmt.Sprintf("TagSpecification.%d.Tag", n)) {
			v.Tags[k] = t
		}
	}
	token := f.Get("ClientToken")
	fresh := true
	var refused *Fault
	c.change(func(w *world) {
		if token != "" {
			if id, ok := c.tokens[token]; ok { // also those of volumes that were deleted since
				if v, ok = w.volumes[id]; ok {
					fresh = false
				} else {
					refused = &Fault{http.StatusBadRequest, "IdempotentParameterMismatch",
						"The client token you have provided is associated with a resource that is already deleted. Please use a different client token."}
				}
				return
			}
		}
		if slices.Contains(c.behavior.UnusableKeys, v.Key) && v.Key != "" {
			v.State = "creating"
			time.AfterFunc(200*time.Millisecond, func() { c.change(func(w *world) { delete(w.volumes, v.ID) }) })
		}
		c.serial++
		v.ID = fmt.Sprintf("vol-%017x", 0xc0ffee0000+c.serial)
		w.volumes[v.ID] = v
		if token != "" {
			c.tokens[token] = v.ID
		}
	})
	if refused != nil {
		return nil, refused
	}
	if fresh && c.hooks.Create != nil {
		if err := c.hooks.Create(v); err != nil {
			return nil, &Fault{http.StatusInternalServerError, "InternalError", err.Error()}
		}
	}
	return toXML(v), nil
}

func (c *Cloud) deleteVolume(f url.Values) (any, *Fault) {
	id := f.Get("VolumeId")
	var fault *Fault
	c.change(func(w *world) {
		switch v, ok := w.volumes[id]; {
		case !ok:
			fault = noVolume(id)
		case v.Attachment != nil:
			fault = &Fault{http.StatusBadRequest, "VolumeInUse", "Volume " + id + " is currently attached to " + v.Attachment.Instance}
		default:
			delete(w.volumes, id)
		}
	})
	return done{true}, fault
}

type done struct {
	Return bool `xml:"return"`
}

func (c *Cloud) changeTags(action string, f url.Values) (any, *Fault) {
	tags := tagsOf(f, "Tag")
	var fault *Fault
	c.change(func(w *world) {
		for _, id := range listOf(f, "ResourceId") {
			v, ok := w.volumes[id]
			if !ok {
				fault = noVolume(id)
				return
			}
			changed := map[string]string{}
			for k, t := range v.Tags {
				changed[k] = t
			}
			for k, t := range tags {
				if action == "CreateTags" {
					changed[k] = t
				} else {
					delete(changed, k)
				}
			}
			v.Tags = changed
			w.volumes[id] = v
		}
	})
	return done{true}, fault
}
