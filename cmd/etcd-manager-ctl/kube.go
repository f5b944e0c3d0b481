package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// registry is where API servers keep everything (--etcd-prefix).
const registry = "/registry/"

// namespacesPrefix is where the namespaces themselves are.
const namespacesPrefix = registry + "namespaces/"

// kubeObject is what a key says of the object that it holds.
type kubeObject struct {
	// Kind is Kubernetes' own word where it is known from the key, else the resource with its group.
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

func (o kubeObject) String() string {
	if o.Namespace != "" {
		return o.Kind + " " + o.Namespace + "/" + o.Name
	}
	return o.Kind + " " + o.Name
}

// kubeKind names the kind of what is kept under a word; where it isn't the resource's name, that stands in the comment.
func kubeKind(resource string) (kind string, namespaced, ok bool) {
	switch resource {
	case "minions": // nodes
		return "Node", false, true
	case "namespaces":
		return "Namespace", false, true
	case "persistentvolumes":
		return "PersistentVolume", false, true
	case "clusterroles":
		return "ClusterRole", false, true
	case "clusterrolebindings":
		return "ClusterRoleBinding", false, true
	case "storageclasses":
		return "StorageClass", false, true
	case "priorityclasses":
		return "PriorityClass", false, true
	case "ingressclasses", "ingressclass":
		return "IngressClass", false, true
	case "csinodes":
		return "CSINode", false, true
	case "csidrivers":
		return "CSIDriver", false, true
	case "volumeattachments":
		return "VolumeAttachment", false, true
	case "runtimeclasses":
		return "RuntimeClass", false, true
	case "mutatingwebhookconfigurations":
		return "MutatingWebhookConfiguration", false, true
	case "validatingwebhookconfigurations":
		return "ValidatingWebhookConfiguration", false, true
	case "flowschemas":
		return "FlowSchema", false, true
	case "prioritylevelconfigurations":
		return "PriorityLevelConfiguration", false, true
	case "ipaddresses":
		return "IPAddress", false, true
	case "servicecidrs":
		return "ServiceCIDR", false, true
	case "certificatesigningrequests":
		return "CertificateSigningRequest", false, true
	}
	kind, ok = namespacedKind(resource)
	return kind, true, ok
}

func namespacedKind(resource string) (string, bool) {
	for _, k := range []struct{ resource, kind string }{
		{"configmaps", "ConfigMap"}, {"controllerrevisions", "ControllerRevision"}, {"controllers", "ReplicationController"}, {"cronjobs", "CronJob"},
		{"csistoragecapacities", "CSIStorageCapacity"}, {"daemonsets", "DaemonSet"}, {"deployments", "Deployment"}, {"endpointslices", "EndpointSlice"}, {"events", "Event"},
		{"horizontalpodautoscalers", "HorizontalPodAutoscaler"}, {"ingress", "Ingress"}, {"jobs", "Job"}, {"leases", "Lease"}, {"limitranges", "LimitRange"},
		{"networkpolicies", "NetworkPolicy"}, {"persistentvolumeclaims", "PersistentVolumeClaim"}, {"poddisruptionbudgets", "PodDisruptionBudget"}, {"pods", "Pod"},
		{"podtemplates", "PodTemplate"}, {"replicasets", "ReplicaSet"}, {"resourceclaims", "ResourceClaim"}, {"resourcequotas", "ResourceQuota"}, {"rolebindings", "RoleBinding"},
		{"roles", "Role"}, {"secrets", "Secret"}, {"serviceaccounts", "ServiceAccount"}, {"statefulsets", "StatefulSet"},
	} {
		if k.resource == resource {
			return k.kind, true
		}
	}
	return "", false
}

// kubeOf reads what a key says: /registry/<resource>/[<namespace>/]<name>, with the group before the resource if it has a dot. Names have no slash; those of
// roles may have anything else.
func kubeOf(key string) (kubeObject, bool) {
	rest, ok := strings.CutPrefix(key, registry)
	if !ok {
		return kubeObject{}, false
	}
	parts := strings.Split(rest, "/")
	for _, p := range parts {
		if p == "" {
			return kubeObject{}, false
		}
	}
	if len(parts) == 4 && parts[0] == "services" {
		kind := map[string]string{"specs": "Service", "endpoints": "Endpoints"}[parts[1]]
		return kubeObject{Kind: kind, Namespace: parts[2], Name: parts[3]}, kind != ""
	}
	if strings.Contains(parts[0], ".") && len(parts) >= 3 {
		return grouped(parts[0], parts[1], parts[2:])
	}
	kind, namespaced, known := kubeKind(parts[0])
	if !known {
		kind = parts[0]
	}
	switch {
	case len(parts) == 3 && (namespaced || !known):
		return kubeObject{Kind: kind, Namespace: parts[1], Name: parts[2]}, true
	case len(parts) == 2 && (!namespaced || !known):
		return kubeObject{Kind: kind, Name: parts[1]}, true
	}
	return kubeObject{}, false
}

// grouped is an object of a group: a custom resource, or one of API machinery's own.
func grouped(group, resource string, rest []string) (kubeObject, bool) {
	kind := resource + "." + group
	switch kind {
	case "customresourcedefinitions.apiextensions.k8s.io":
		kind = "CustomResourceDefinition"
	case "apiservices.apiregistration.k8s.io":
		kind = "APIService"
	}
	switch len(rest) {
	case 1:
		return kubeObject{Kind: kind, Name: rest[0]}, true
	case 2:
		return kubeObject{Kind: kind, Namespace: rest[0], Name: rest[1]}, true
	}
	return kubeObject{}, false
}

// inNamespace picks the keys of a namespace: the objects in it, and itself.
func inNamespace(namespace string) func(key []byte) bool {
	return func(key []byte) bool {
		if string(key) == namespacesPrefix+namespace {
			return true
		}
		if !bytes.Contains(key, []byte("/"+namespace+"/")) { // mostly
			return false
		}
		o, ok := kubeOf(string(key))
		return ok && o.Namespace == namespace
	}
}

// kubeValue is what the stored form of an object tells without knowing its kind.
type kubeValue struct {
	// Form is "protobuf", "json" or "encrypted"; empty for what isn't an object.
	Form             string
	APIVersion, Kind string
	// Provider is what encrypted it, by what stands before it.
	Provider string
	// Asked is when somebody asked for its deletion; zero if nobody has.
	Asked time.Time
}

const (
	protobufMark  = "k8s\x00"
	encryptedMark = "k8s:enc:"
)

// readKubeValue looks at a stored value.
func readKubeValue(value []byte) kubeValue {
	switch {
	case bytes.HasPrefix(value, []byte(encryptedMark)):
		parts := strings.SplitN(string(value[:min(len(value), 200)]), ":", 6)
		v := kubeValue{Form: "encrypted"}
		if len(parts) == 6 { // k8s:enc:<provider>:<version>:<key>:
			v.Provider = parts[2] + ", key " + parts[4]
		}
		return v
	case bytes.HasPrefix(value, []byte(protobufMark)):
		return readUnknown(value[len(protobufMark):])
	case len(value) > 0 && value[0] == '{':
		return readKubeJSON(value)
	}
	return kubeValue{}
}

func readKubeJSON(value []byte) kubeValue {
	var o struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			DeletionTimestamp          time.Time `json:"deletionTimestamp"`
			DeletionGracePeriodSeconds int64     `json:"deletionGracePeriodSeconds"`
		} `json:"metadata"`
	}
	if json.Unmarshal(value, &o) != nil || o.Kind == "" {
		return kubeValue{}
	}
	return kubeValue{Form: "json", APIVersion: o.APIVersion, Kind: o.Kind, Asked: askedAt(o.Metadata.DeletionTimestamp, o.Metadata.DeletionGracePeriodSeconds)}
}

// askedAt is when a deletion was asked for: the timestamp is when the grace ends.
func askedAt(deletion time.Time, grace int64) time.Time {
	if deletion.IsZero() {
		return time.Time{}
	}
	return deletion.Add(-time.Duration(grace) * time.Second).UTC()
}

// Numbers of fields that every object in protocol buffers has.
const (
	unknownTypeMeta = 1 // of runtime.Unknown, the envelope
	unknownRaw      = 2
	typeAPIVersion  = 1
	typeKind        = 2
	objectMeta      = 1 // of every object
	metaDeletion    = 9
	metaGrace       = 10
	timeSeconds     = 1
)

// readUnknown reads the envelope of an object, and of the object the part that all have in common.
func readUnknown(b []byte) kubeValue {
	v := kubeValue{Form: "protobuf"}
	typeMeta, raw := field(b, unknownTypeMeta), field(b, unknownRaw)
	v.APIVersion, v.Kind = string(field(typeMeta, typeAPIVersion)), string(field(typeMeta, typeKind))
	meta := field(raw, objectMeta)
	if t := field(meta, metaDeletion); len(t) > 0 {
		v.Asked = askedAt(time.Unix(number(t, timeSeconds), 0), number(meta, metaGrace))
	}
	return v
}

// field returns the last field of that number that has bytes; nil if there is none, or b is no message.
func field(b []byte, want protowire.Number) (found []byte) {
	eachField(b, func(n protowire.Number, bytes []byte, _ uint64) {
		if n == want && bytes != nil {
			found = bytes
		}
	})
	return found
}

// number returns the last field of that number that is one.
func number(b []byte, want protowire.Number) (found int64) {
	eachField(b, func(n protowire.Number, bytes []byte, v uint64) {
		if n == want && bytes == nil {
			found = int64(v)
		}
	})
	return found
}

func eachField(b []byte, visit func(n protowire.Number, bytes []byte, v uint64)) {
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return
		}
		b = b[size:]
		switch kind {
		case protowire.BytesType:
			v, size := protowire.ConsumeBytes(b)
			if size < 0 {
				return
			}
			visit(n, v, 0)
			b = b[size:]
		case protowire.VarintType:
			v, size := protowire.ConsumeVarint(b)
			if size < 0 {
				return
			}
			visit(n, nil, v)
			b = b[size:]
		default:
			size := protowire.ConsumeFieldValue(n, kind, b)
			if size < 0 {
				return
			}
			b = b[size:]
		}
	}
}

// dying tells of a value since when its object is being deleted.
func dying(value []byte) (time.Time, bool) {
	v := readKubeValue(value)
	return v.Asked, !v.Asked.IsZero()
}
