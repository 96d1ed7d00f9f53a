"""Whole volumes in the module's logic: propagate, Auto, everything, and what they leave to apply or discard."""

import slicer
import vtk


class VolumeLogic:
    """Mixed into ``SegMoTELogic``, which has the scene's segmenter and waits for results."""

    # --- for scripts: compute and wait ---------------------------------------------------------------------------

    def autoSegment(self, volumeNode, segmentationNode, targetName, view=None, wholeVolume=False):
        """Segment one of ``targets()`` without prompts, on the view's slice or on all parallel ones.

        "axial", "sagittal" and "coronal" mean the volume's middle slice; None the direction that suits the target and
        the volume best. Returns the id of the segment, which is named after the target and created if there is none.
        """
        with self._waited():
            view = self.bestView(volumeNode, targetName) if view is None else view
            segmentId = self.startAuto(volumeNode, segmentationNode, targetName, view,
                                       None if wholeVolume else self.sliceIndex(volumeNode, view), preview=False)
        return segmentId

    def propagate(self, volumeNode, segmentationNode, segmentId, view="axial", sliceRange=None):
        """Carry a segment from the slices that have prompts to the others, to the object's ends; one undo step.

        view: direction of the slices. sliceRange: (first, last) to stay within, counted from 0; default: all.
        """
        with self._waited():
            self.startPropagate(self.target(volumeNode, segmentationNode, segmentId), view, sliceRange)

    def findEverything(self, volumeNode, view="axial"):
        """Show what stands out on a view's slice as candidates; returns how many. ``pickCandidate`` takes one."""
        with self._waited():
            self.startEverything(volumeNode, view)
        return len(self._runs.candidates[2])

    def pickCandidate(self, target, position):
        """Write the candidate at (R, A, S), on the slice it was found on, into a segment; False where there is none."""
        return self._runs is not None and self._runs.pick(target, position)

    # --- for the panel: start and go on ----------------------------------------------------------------------------

    def startAuto(self, volumeNode, segmentationNode, targetName, view="axial", sliceRange=None, preview=True):
        """Start Auto on slices ``sliceRange`` (first, last; default: all) parallel to a view; returns the segment's id.

        preview: the result waits for ``applyRun`` or ``discardRun``.
        """
        self.checkVolume(volumeNode)
        self._segments()  # installs what the imports need
        from SegMoTELib.interaction.targets import check_target
        from SegMoTELib.mrml.volumes import stack_along

        check_target(targetName, [name for name, _modality in self.targets()])  # before a segment is made for it
        stack = stack_along(self._orientation(volumeNode, view), volumeNode)
        first, last = sliceRange or (0, len(stack) - 1)
        before = segmentationNode.GetSegmentation().GetNumberOfSegments()
        segmentId = self._segmentOfTarget(segmentationNode, volumeNode, targetName)
        target = self.target(volumeNode, segmentationNode, segmentId)
        if segmentationNode.GetSegmentation().GetNumberOfSegments() > before:
            self._made = target
        self._whenLoaded(lambda: (self._dress(target, targetName), self._segments().when_answered(
            target, lambda: self._volumeRuns().auto(target, targetName, stack, first, last, preview))))
        return segmentId

    def bestView(self, volumeNode, targetName):
        """"axial", "sagittal" or "coronal": on which slices a target is best looked for in a volume."""
        self._segments()  # installs what the imports need
        from SegMoTELib.interaction.targets import best_orientation
        from SegMoTELib.mrml.volumes import volume_of

        return best_orientation(volume_of(volumeNode), self.card().planes.get(targetName, ""))

    def startPropagate(self, target, view="axial", sliceRange=None, direction=0):
        """``propagate`` without waiting; direction -1: only towards the first slice, 1: only towards the last."""
        from SegMoTELib.mrml.volumes import stack_along

        self._checked(target)
        stack = stack_along(self._orientation(target.volume, view), target.volume)
        first, last = sliceRange or (0, len(stack) - 1)
        self._whenLoaded(lambda: self._segments().when_answered(
            target, lambda: self._volumeRuns().propagate(target, stack, first, last, direction)))

    def startEverything(self, volumeNode, view="axial"):
        """``findEverything`` without waiting."""
        from SegMoTELib.mrml.volumes import plane_of

        plane = plane_of(self._orientation(volumeNode, view), volumeNode)
        self._whenLoaded(lambda: self._volumeRuns().everything(volumeNode, plane))

    def sliceCount(self, volumeNode, view="axial"):
        """How many slices of the volume are parallel to a view."""
        from SegMoTELib.mrml.volumes import stack_along

        return len(stack_along(self._orientation(volumeNode, view), volumeNode))

    def sliceIndex(self, volumeNode, view="axial"):
        """(n, n) for the slice that a view shows: as a range of one."""
        from SegMoTELib.mrml.volumes import plane_of, stack_along

        matrix = self._orientation(volumeNode, view)
        index = stack_along(matrix, volumeNode).nearest(plane_of(matrix, volumeNode).pixel_to_ras[:3, 3])
        return index, index

    def hasPending(self):
        """Whether a run that has ended left slices to apply or discard."""
        return self._runs is not None and self._runs.pending is not None and bool(self._runs.pending.masks) \
            and not self.busy()

    def hasPicks(self, target):
        """Whether a segment has a slice that was picked from everything, from which it can be propagated, too."""
        return target is not None and target.exists() and self._segmenter is not None \
            and self._segmenter.has_picks(target)

    def hasCandidates(self):
        """Whether there is something for ``pickCandidate``."""
        return self._runs is not None and self._runs.candidates is not None

    def applyRun(self):
        """Write what the latest run found so far; False where there is nothing."""
        return self._runs is not None and self._runs.apply()

    def discardRun(self):
        """Forget what the latest run found; the scene is as before."""
        if self._runs is not None:
            self._runs.discard()
        self._removeMade()

    def pickNode(self):
        """A point list for the user to click on candidates with; ``removePickNode`` takes it away."""
        self.removePickNode()
        node = slicer.vtkMRMLMarkupsFiducialNode()
        node.SetName("SegMoTE pick")
        node.SetHideFromEditors(True)
        node.SetSaveWithScene(False)
        self._picks = slicer.mrmlScene.AddNode(node)
        self._picks.CreateDefaultDisplayNodes()
        self._picks.SetDisplayVisibility(False)
        return self._picks

    def removePickNode(self):
        if self._picks is not None and self._picks.GetScene() is not None:
            slicer.mrmlScene.RemoveNode(self._picks)
        self._picks = None

    # --- inside ----------------------------------------------------------------------------------------------------

    def _volumeRuns(self):
        if self._runs is None:
            from SegMoTELib.mrml.runs import VolumeRuns

            self._runs = VolumeRuns(self._segments())
        return self._runs

    def _removeMade(self):
        """Remove the segment that Auto made, where nothing came into it."""
        from SegMoTELib.mrml.segments import is_empty

        made, self._made = self._made, None
        if made is not None and made.exists() and is_empty(made.segmentation, made.segment_id) \
                and not self.hasPrompts(made) and not self._segments().has_steps(made):
            made.segmentation.GetSegmentation().RemoveSegment(made.segment_id)

    def _segmentOfTarget(self, segmentationNode, volumeNode, targetName):
        segmentation = segmentationNode.GetSegmentation()
        found = vtk.reference("")
        for segmentId in segmentation.GetSegmentIDs():
            if segmentation.GetSegment(segmentId).GetTag("SegMoTE.Target", found) and str(found) == targetName:
                return segmentId
        segmentId = self.addSegment(segmentationNode, volumeNode, targetName)
        segmentation.GetSegment(segmentId).SetTag("SegMoTE.Target", targetName)
        return segmentId

    def _dress(self, target, targetName):
        """Colour and terminology of a segment that Auto created, from the model."""
        segment = target.segmentation.GetSegmentation().GetSegment(target.segment_id)
        offered = {one.name: one for one in self._segmenter.predictor.auto_targets}
        dressed = vtk.reference("")
        if segment is None or targetName not in offered or segment.GetTag("SegMoTE.Dressed", dressed):
            return
        segment.SetColor(*(value / 255 for value in offered[targetName].color))
        if offered[targetName].terminology:
            segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), offered[targetName].terminology)
        segment.SetTag("SegMoTE.Dressed", "1")
