// Package kube reads what Kubernetes keeps in etcd: what a key and a stored value say of an object, and the API servers' master leases.
//
// It knows keys and the stored forms alone, imports nothing of Kubernetes, and never changes an object. The only thing that it removes are
// master leases, if it is told to.
package kube

import (
	"bytes"
	"strings"
)

// Registry is where API servers keep everything (--etcd-prefix).
const Registry = "/registry/"

// NamespacesPrefix is where the namespaces themselves are.
const NamespacesPrefix = Registry + "namespaces/"

// Object is what a key says of the object that it holds.
type Object struct {
	// Kind is Kubernetes' own word where it is known from the key, else the resource with its group.
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

func (o Object) String() string {
	if o.Namespace != "" {
		return o.Kind + " " + o.Namespace + "/" + o.Name
	}
	return o.Kind + " " + o.Name
}

// kindOf names the kind of what is kept under a word; where it isn't the resource's name, that stands in the comment.
func kindOf(resource string) (kind string, namespaced, ok bool) {
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
		{"configmaps", "ConfigMap"}, {"controllerrevisions", "ControllerRevision"},
		{"controllers", "ReplicationController"}, {"cronjobs", "CronJob"},
		{"csistoragecapacities", "CSIStorageCapacity"}, {"daemonsets", "DaemonSet"}, {"deployments", "Deployment"},
		{"endpointslices", "EndpointSlice"}, {"events", "Event"},
		{"horizontalpodautoscalers", "HorizontalPodAutoscaler"}, {"ingress", "Ingress"}, {"jobs", "Job"},
		{"leases", "Lease"}, {"limitranges", "LimitRange"},
		{"networkpolicies", "NetworkPolicy"}, {"persistentvolumeclaims", "PersistentVolumeClaim"},
		{"poddisruptionbudgets", "PodDisruptionBudget"}, {"pods", "Pod"},
		{"podtemplates", "PodTemplate"}, {"replicasets", "ReplicaSet"}, {"resourceclaims", "ResourceClaim"},
		{"resourcequotas", "ResourceQuota"}, {"rolebindings", "RoleBinding"},
		{"roles", "Role"}, {"secrets", "Secret"}, {"serviceaccounts", "ServiceAccount"}, {"statefulsets", "StatefulSet"},
	} {
		if k.resource == resource {
			return k.kind, true
		}
	}
	return "", false
}

// ObjectOf reads what a key says: /registry/<resource>/[<namespace>/]<name>, with the group before
// the resource if it has a dot. Names have no slash; those of roles may have anything else.
func ObjectOf(key string) (Object, bool) {
	rest, ok := strings.CutPrefix(key, Registry)
	if !ok {
		return Object{}, false
	}
	parts := strings.Split(rest, "/")
	for _, p := range parts {
		if p == "" {
			return Object{}, false
		}
	}
	if len(parts) == 4 && parts[0] == "services" {
		kind := map[string]string{"specs": "Service", "endpoints": "Endpoints"}[parts[1]]
		return Object{Kind: kind, Namespace: parts[2], Name: parts[3]}, kind != ""
	}
	if strings.Contains(parts[0], ".") && len(parts) >= 3 {
		return grouped(parts[0], parts[1], parts[2:])
	}
	kind, namespaced, known := kindOf(parts[0])
	if !known {
		kind = parts[0]
	}
	switch {
	case len(parts) == 3 && (namespaced || !known):
		return Object{Kind: kind, Namespace: parts[1], Name: parts[2]}, true
	case len(parts) == 2 && (!namespaced || !known):
		return Object{Kind: kind, Name: parts[1]}, true
	}
	return Object{}, false
}

// grouped is an object of a group: a custom resource, or one of API machinery's own.
func grouped(group, resource string, rest []string) (Object, bool) {
	kind := resource + "." + group
	switch kind {
	case "customresourcedefinitions.apiextensions.k8s.io":
		kind = "CustomResourceDefinition"
	case "apiservices.apiregistration.k8s.io":
		kind = "APIService"
	}
	switch len(rest) {
	case 1:
		return Object{Kind: kind, Name: rest[0]}, true
	case 2:
		return Object{Kind: kind, Namespace: rest[0], Name: rest[1]}, true
	}
	return Object{}, false
}

// InNamespace picks the keys of a namespace: the objects in it, and itself.
func InNamespace(namespace string) func(key []byte) bool {
	return func(key []byte) bool {
		if string(key) == NamespacesPrefix+namespace {
			return true
		}
		if !bytes.Contains(key, []byte("/"+namespace+"/")) { // mostly
			return false
		}
		o, ok := ObjectOf(string(key))
		return ok && o.Namespace == namespace
	}
}
