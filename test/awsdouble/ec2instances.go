package awsdouble

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
)

type mappingXML struct {
	Device string `xml:"deviceName"`
	Ebs    struct {
		VolumeID string `xml:"volumeId"`
		Status   string `xml:"status"`
	} `xml:"ebs"`
}

type instanceXML struct {
	InstanceID string `xml:"instanceId"`
	State      struct {
		Code int    `xml:"code"`
		Name string `xml:"name"`
	} `xml:"instanceState"`
	PrivateIP  string       `xml:"privateIpAddress,omitempty"`
	IPv6       string       `xml:"ipv6Address,omitempty"`
	Zone       string       `xml:"placement>availabilityZone"`
	RootDevice string       `xml:"rootDeviceName"`
	Mappings   []mappingXML `xml:"blockDeviceMapping>item"`
}

func (c *Cloud) describeInstances(f url.Values) (any, *Fault) {
	w := c.read()
	ids := listOf(f, "InstanceId")
	for _, id := range ids {
		if _, ok := w.instances[id]; !ok {
			return nil, &Fault{http.StatusBadRequest, "InvalidInstanceID.NotFound", "The instance ID '" + id + "' does not exist"}
		}
	}
	var list []instanceXML
	for _, i := range w.instances {
		if len(ids) > 0 && !slices.Contains(ids, i.ID) {
			continue
		}
		x := instanceXML{InstanceID: i.ID, PrivateIP: i.IPv4, IPv6: i.IPv6, Zone: i.Zone, RootDevice: i.RootDevice}
		x.State.Name = i.State
		if i.State == "terminated" { // EC2 forgets addresses first
			x.PrivateIP, x.IPv6 = "", ""
		}
		root := mappingXML{Device: i.RootDevice}
		root.Ebs.Status = "attached"
		x.Mappings = []mappingXML{root}
		for _, v := range sorted(w.volumes) {
			if v.Attachment != nil && v.Attachment.Instance == i.ID && v.Attachment.Device != i.RootDevice {
				m := mappingXML{Device: v.Attachment.Device}
				m.Ebs.VolumeID, m.Ebs.Status = v.ID, v.Attachment.State
				x.Mappings = append(x.Mappings, m)
			}
		}
		list = append(list, x)
	}
	slices.SortFunc(list, func(a, b instanceXML) int { return strings.Compare(a.InstanceID, b.InstanceID) })
	from, to, next := c.page(f, len(list))
	type reservation struct {
		ID        string        `xml:"reservationId"`
		Instances []instanceXML `xml:"instancesSet>item"`
	}
	var all []reservation
	for _, i := range list[from:to] {
		all = append(all, reservation{"r-" + i.InstanceID, []instanceXML{i}})
	}
	return struct {
		RequestID    string        `xml:"requestId"`
		Reservations []reservation `xml:"reservationSet>item"`
		NextToken    string        `xml:"nextToken,omitempty"`
	}{"r", all, next}, nil
}
