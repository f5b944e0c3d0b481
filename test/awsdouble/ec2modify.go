package awsdouble

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// numbers reads what a request says of size and speed.
func numbers(f url.Values, v *Volume) {
	for name, to := range map[string]*int{"Size": &v.SizeGiB, "Iops": &v.IOPS, "Throughput": &v.Throughput} {
		if f.Has(name) {
			_, _ = fmt.Sscan(f.Get(name), to)
		}
	}
}

// settle fills in what EC2 tells of a volume that was asked for, or says what it refuses.
func (v *Volume) settle() *Fault {
	refuse := func(what string) *Fault {
		return &Fault{http.StatusBadRequest, "InvalidParameterCombination",
			fmt.Sprintf("The parameter %s is not supported for %s volumes.", what, v.Type)}
	}
	switch v.Type {
	case "gp3":
		v.IOPS, v.Throughput = max(v.IOPS, 3000), max(v.Throughput, 125)
		if v.IOPS > max(3000, 500*v.SizeGiB) {
			return &Fault{http.StatusBadRequest, "InvalidParameterCombination", "Maximum gp3 ratio of 500 IOPS per GiB was exceeded"}
		}
	case "io1", "io2":
		if v.IOPS == 0 {
			return &Fault{http.StatusBadRequest, "MissingParameter", "The parameter iops must be specified for " + v.Type + " volumes."}
		}
		if v.Throughput != 0 {
			return refuse("throughput")
		}
	default:
		if v.IOPS != 0 || v.Throughput != 0 {
			return refuse("iops")
		}
		if v.Type == "gp2" {
			v.IOPS = min(max(100, 3*v.SizeGiB), 16000) // EC2 tells it though nobody can set it
		}
	}
	return nil
}

type modificationXML struct {
	VolumeID         string `xml:"volumeId"`
	State            string `xml:"modificationState"`
	TargetSize       int    `xml:"targetSize"`
	TargetIops       int    `xml:"targetIops,omitempty"`
	TargetThroughput int    `xml:"targetThroughput,omitempty"`
	TargetType       string `xml:"targetVolumeType"`
}

func modification(v Volume) modificationXML {
	return modificationXML{v.ID, "modifying", v.SizeGiB, v.IOPS, v.Throughput, v.Type}
}

// modifyVolume changes a volume after a delay. Until then it is described as it was, and can't be changed again.
func (c *Cloud) modifyVolume(f url.Values) (any, *Fault) {
	id := f.Get("VolumeId")
	v, ok := c.Volume(id)
	if !ok {
		return nil, noVolume(id)
	}
	before := v.SizeGiB
	if t := f.Get("VolumeType"); t != "" && t != v.Type {
		v.Type, v.IOPS, v.Throughput = t, 0, 0
	}
	if v.Type != "gp3" && v.Type != "io1" && v.Type != "io2" {
		v.IOPS, v.Throughput = 0, 0
	}
	numbers(f, &v)
	if v.SizeGiB < before {
		return nil, &Fault{http.StatusBadRequest, "InvalidParameterValue", "New size cannot be smaller than existing size"}
	}
	if fault := v.settle(); fault != nil {
		return nil, fault
	}
	c.mu.Lock()
	_, busy := c.modifications[id]
	delay := c.behavior.ModifyDelay
	if !busy {
		c.modifications[id] = v
	}
	c.mu.Unlock()
	if busy {
		return nil, &Fault{http.StatusBadRequest, "IncorrectModificationState", "Volume " + id + " is already being modified"}
	}
	finish := func() {
		c.change(func(w *world) {
			now := w.volumes[id]
			now.Type, now.SizeGiB, now.IOPS, now.Throughput = v.Type, v.SizeGiB, v.IOPS, v.Throughput
			w.volumes[id] = now
			delete(c.modifications, id)
		})
	}
	if delay == 0 {
		finish()
	} else {
		time.AfterFunc(delay, finish)
	}
	return struct {
		Modification modificationXML `xml:"volumeModification"`
	}{modification(v)}, nil
}

func (c *Cloud) describeModifications(url.Values) (any, *Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []modificationXML
	for _, v := range c.modifications {
		list = append(list, modification(v))
	}
	slices.SortFunc(list, func(a, b modificationXML) int { return strings.Compare(a.VolumeID, b.VolumeID) })
	return struct {
		List []modificationXML `xml:"volumeModificationSet>item"`
	}{list}, nil
}
