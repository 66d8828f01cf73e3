package agent

// FeatureOutputKept is the extra feature (GuestDetailsResponse) of agents that keep what a process has written after somebody has waited
// for its end. Others throw it away then.
const FeatureOutputKept = "cloister-output-kept"

// FeaturePolicyFragments is the extra feature of agents that have LoadPolicyFragment.
const FeaturePolicyFragments = "cloister-policy-fragments"
