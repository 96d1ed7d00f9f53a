"""SegMoTELogic: interactive segmentation for scripts, the panel, the self-test and the demo alike."""

import logging
from contextlib import contextmanager

import numpy as np
import slicer
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

from SegMoTEModule import compatibility
from SegMoTEModule.modellogic import ModelLogic
from SegMoTEModule.volumelogic import VolumeLogic


class SegMoTELogic(ModelLogic, VolumeLogic, ScriptedLoadableModuleLogic):
    """Interactive segmentation without the panel.

    Positions are world RAS millimetres. A view is "axial", "sagittal" or "coronal" (of the volume's own grid), a slice
    node, or a (4, 4) slice-to-RAS matrix. Methods that compute wait for the result and raise errors whose message says
    what to do; nothing is changed then.

    Example::

        logic = SegMoTELogic()
        segmentationNode = logic.addSegmentation(volumeNode)
        segmentId = logic.addSegment(segmentationNode, volumeNode, "kidney")
        logic.segmentAtPoints(volumeNode, segmentationNode, segmentId, [[12.0, -30.0, 45.0]], view="axial")
        logic.undo()
    """

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        self.mapping, self.smoothing = "window", 0.0
        self._embeddingsOnDisk = False
        self.onStatus = lambda text, isError: None
        self.onBusy = lambda: None
        self.onModel = lambda changed: None  # weights were loaded (True), or could not be
        self._segmenter = None
        self._runs = None  # long work on the segmenter
        self._picks = None  # see pickNode
        self._made = None  # the target that Auto made a segment for
        self._waiting = []  # what to do once the model is loaded
        self._asked = None  # the target that was last to be answered
        self._errors = None  # of a method that waits
        self._observed = None  # the prompts that are shown

    # --- for scripts: compute and wait ---------------------------------------------------------------------------

    def segmentAtPoints(self, volumeNode, segmentationNode, segmentId, positives, negatives=(), view="axial"):
        """Add points to a segment's prompts and update its mask; positives and negatives are lists of (R, A, S)."""
        target = self._checked(self.target(volumeNode, segmentationNode, segmentId))
        orientation = self._orientation(volumeNode, view)
        prompts = self._segments().prompts(target)
        before = prompts.snapshot()
        try:
            with prompts.quiet():
                for points, positive in ((positives, True), (negatives, False)):
                    for point in points:
                        prompts.add_point(point, positive, orientation)
            self._updateAndWait(target)
        except Exception:
            prompts.restore(before)
            raise

    def segmentInBox(self, volumeNode, segmentationNode, segmentId, corners, view="axial"):
        """Put a box, two opposite corners (R, A, S), among a segment's prompts and update its mask.

        Once for each separate piece of the object; a box that mostly covers an earlier one takes its place.
        """
        target = self._checked(self.target(volumeNode, segmentationNode, segmentId))
        prompts = self._segments().prompts(target)
        before = prompts.snapshot()
        try:
            with prompts.quiet():
                prompts.add_box(corners, self._orientation(volumeNode, view))
            self._updateAndWait(target)
        except Exception:
            prompts.restore(before)
            raise

    def undo(self):
        """Take the latest prompt back with what it changed; False where there is none."""
        return self._segmenter is not None and self._segmenter.undo()

    def redo(self):
        """Repeat what was taken back; False where there is nothing."""
        return self._segmenter is not None and self._segmenter.redo()

    def exportSurfaces(self, segmentationNode, folder, format="STL"):
        """Write the surfaces of a segmentation's segments into a folder, as "STL" (a file each) or "OBJ" (one file with
        colours), in LPS millimetres of the world as Slicer writes them; empty segments are left out.

        Returns the paths of the files.
        """
        from SegMoTELib.mrml.surfaces import export_surfaces

        return [str(path) for path in export_surfaces(segmentationNode, folder, format)]

    def keepEmbeddings(self, onDisk):
        """Keep embeddings on disk, too, from now on; they are answered from there in the next session."""
        self._embeddingsOnDisk = onDisk
        if self._segmenter is not None and self._segmenter.predictor is not None:
            self._segmenter.predictor.cache = self._cache(onDisk)

    # --- nodes -----------------------------------------------------------------------------------------------------

    def target(self, volumeNode, segmentationNode, segmentId):
        """Where results go: a volume, a segmentation and the id of a segment."""
        from SegMoTELib.mrml.target import Target

        return Target(volumeNode, segmentationNode, segmentId)

    def checkVolume(self, volumeNode):
        """Raise an error that says why a volume cannot be segmented."""
        from SegMoTELib.mrml.volumes import volume_of, world_to_volume

        volume_of(volumeNode)
        world_to_volume(volumeNode)

    def _checked(self, target):
        """The target, if its volume and segment can be used."""
        from SegMoTELib.mrml.segments import SegmentWriter

        self.checkVolume(target.volume)
        SegmentWriter.check(target.segmentation, target.segment_id)
        return target

    def addSegmentation(self, volumeNode):
        """A new segmentation with the volume's geometry and transform."""
        from SegMoTELib.mrml.segments import prepare_segmentation

        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{volumeNode.GetName()} segmentation")
        prepare_segmentation(node, volumeNode)
        return node

    def addSegment(self, segmentationNode, volumeNode, name="", color=None, terminology=""):
        """An empty segment; returns its id."""
        from SegMoTELib.mrml.segments import SegmentWriter, prepare_segmentation

        SegmentWriter.check_voxels(segmentationNode)
        prepare_segmentation(segmentationNode, volumeNode)
        segmentId = segmentationNode.GetSegmentation().AddEmptySegment("", name)
        segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
        if color is not None:
            segment.SetColor(*color)
        if terminology:
            segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), terminology)
        return segmentId

    def clearPrompts(self, target):
        """Remove a segment's prompts and the mask they made, as one undo step."""
        segments = self._segments()

        def clear():
            prompts = segments.prompts(self._checked(target))
            with prompts.quiet():
                prompts.clear()
            segments.update(target)

        self._asked = target
        self._whenLoaded(clear)

    def nextObject(self, target):
        """Keep the mask, remove its prompts and add a segment; returns its id."""
        from SegMoTELib.mrml.markups import remove_prompts

        if self._segmenter is not None:
            self._segmenter.accept(target.segmentation, target.segment_id)
        remove_prompts(slicer.mrmlScene, target.segmentation, target.segment_id)  # those of a loaded scene, too
        return self.addSegment(target.segmentation, target.volume)

    # --- for the panel: start and go on ----------------------------------------------------------------------------

    def prepare(self):
        """Install what is missing, after asking, and start loading the model."""
        self._whenLoaded(lambda: None)

    def promptNode(self, target, kind):
        """The markups node that the user places "positive" or "negative" points, or a "box", into."""
        self._checked(target)
        prompts = self._segments().prompts(target)
        node = prompts.start_box() if kind == "box" else prompts.node(kind)
        prompts.follow()
        return node

    def finishBox(self, target, node, first):
        """Make a prompt of a drawn ROI whose first corner was at ``first``."""
        prompts = self._segments().prompts(target)
        prompts.finish_box(node, first, self._viewAt(target.volume, np.array(first)))

    def promptsChanged(self, target):
        """Update a segment after its prompts were changed in the views."""
        segments = self._segments()
        prompts = segments.prompts(target)
        prompts.orient_new(lambda position: self._viewAt(target.volume, position))
        self._asked = target
        self._whenLoaded(lambda: segments.update(target))

    def prefetch(self, volumeNode, sliceNode):
        """Prepare the slice that a view shows, once a model is loaded; errors wait for the click."""
        from SegMoTELib.errors import SegMoTEError
        from SegMoTELib.mrml.volumes import plane_of

        if self._segmenter is None or self._segmenter.predictor is None:
            return
        try:
            self._settings().prefetch(volumeNode, plane_of(self._orientation(volumeNode, sliceNode), volumeNode))
        except SegMoTEError:
            return
        self.onBusy()

    def showPromptsOf(self, target, changed):
        """Show a segment's prompts, hide those of others, and call back when the user changes them."""
        from SegMoTELib.mrml.markups import prompt_nodes
        from SegMoTELib.mrml.prompts import PromptSet

        self.forgetDeleted()
        self._stopObserving()
        for node, key in prompt_nodes(slicer.mrmlScene):
            node.SetDisplayVisibility(key == target.key)
        if self._segmenter is not None:
            self._observed = self._segmenter.prompts(target)
        elif self.hasPrompts(target):  # of a loaded scene; the segmenter takes them over
            self._observed = PromptSet(slicer.mrmlScene, target)
        else:
            return
        self._observed.set_visible(True)
        self._observed.observe(changed)

    def _stopObserving(self):
        if self._observed is not None:
            self._observed.observe(None)
            if self._observed.target.exists():
                self._observed.set_visible(False)
        self._observed = None

    def hasPrompts(self, target):
        if target is None or not target.exists():
            return False
        from SegMoTELib.mrml.markups import has_prompts

        return has_prompts(slicer.mrmlScene, target)

    def canUndo(self):
        return self._segmenter is not None and self._segmenter.can_undo()

    def canRedo(self):
        return self._segmenter is not None and self._segmenter.can_redo()

    def deliver(self, wait):
        """Take finished jobs' results into the scene; the panel's timer calls this."""
        if self._segmenter is None:
            return
        self._segmenter.jobs.deliver(wait)
        self._watchDevice()

    def busy(self):
        return self._segmenter is not None and self._segmenter.jobs.busy()

    def progress(self):
        """(label with the time left, 0 to 1 or None) of what runs."""
        job = self._segmenter.jobs.current() if self._segmenter is not None else None
        if job is None:
            return "", None
        left = job.remaining
        return (job.label if left is None else _("{label}, {seconds} s left").format(
            label=job.label, seconds=round(left))), job.progress

    @property
    def seconds(self):
        """Stage -> time that the latest answer took."""
        return {} if self._segmenter is None else dict(self._segmenter.seconds)

    def cancel(self):
        """Stop what runs; nothing of it reaches the scene. Finished slices of a run stay in its preview."""
        self._waiting = []
        if self._runs is not None:
            self._runs.stop()
        if self._segmenter is not None:
            self._segmenter.jobs.cancel()
        if not self.hasPending():
            self._removeMade()

    def forgetDeleted(self):
        if self._segmenter is not None:
            self._segmenter.forget_deleted()

    def sceneClosing(self):
        self._stopObserving()
        self._waiting, self._asked, self._made = [], None, None
        if self._runs is not None:
            self._runs.reset()
        if self._segmenter is not None:
            self._segmenter.scene_closing()

    def close(self):
        """End the job threads and a download."""
        if self.download is not None:
            self.download.cancel()
        if self._observed is not None:
            self._observed.observe(None)
        if self._segmenter is not None:
            self.discardRun()
            self._segmenter.close()
            self._segmenter = self._runs = None

    def isExpected(self, error):
        """Whether an error is one that a user can cause and repair."""
        from SegMoTELib.errors import SegMoTEError

        return isinstance(error, (SegMoTEError, ValueError))

    def sliceUnderCursor(self):
        """The slice node of the view that the mouse is in, or None."""
        crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        return crosshair.GetCursorPositionXYZ([0.0] * 3) if crosshair is not None else None

    def ensureDependencies(self):
        """Install PyTorch through its extension and the rest with pip, after asking once; nothing if all is there."""
        compatibility.ensurePackages(self.onStatus)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _segments(self):
        """The segmenter with the current settings; what it needs is installed first, after asking."""
        if self._segmenter is None:
            self.ensureDependencies()
            from SegMoTELib.mrml.segmenter import SceneSegmenter

            self._segmenter = SceneSegmenter(slicer.mrmlScene, self._told)
            if self._observed is not None:
                self._segmenter.take_over(self._observed)
        return self._settings()

    def _settings(self):
        self._segmenter.mapping, self._segmenter.smoothing = self.mapping, self.smoothing
        return self._segmenter

    def _told(self, text, isError):
        if isError and self._errors is not None:
            self._errors.append(text)
        else:
            self.onStatus(text, isError)

    @staticmethod
    def _cache(onDisk):
        from SegMoTELib.interaction.embeddings import EmbeddingCache, default_folder

        return EmbeddingCache(folder=default_folder() if onDisk else None)

    def _updateAndWait(self, target):
        self._asked = target
        with self._waited():
            segments = self._segments()
            self._whenLoaded(lambda: segments.update(target))

    @contextmanager
    def _waited(self):
        """Context: what it starts is waited for, and its errors are raised."""
        from SegMoTELib.errors import SegMoTEError

        self._errors = []
        try:
            yield
            self._segments().jobs.finish()
            if self._errors:
                raise SegMoTEError(" ".join(self._errors))
        finally:
            self._errors = None

    def _orientation(self, volumeNode, view):
        """(4, 4) slice-to-world matrix of a view."""
        from SegMoTELib.mrml.volumes import view_along

        self.checkVolume(volumeNode)
        if isinstance(view, str):
            return view_along(volumeNode, view)
        if hasattr(view, "GetSliceToRAS"):
            return slicer.util.arrayFromVTKMatrix(view.GetSliceToRAS())
        return np.asarray(view, float)

    def _viewAt(self, volumeNode, position):
        """Orientation of the view that a position was placed in: under the cursor, else one that shows it."""
        under = self.sliceUnderCursor()
        for sliceNode in [under] * (under is not None) + slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            matrix = slicer.util.arrayFromVTKMatrix(sliceNode.GetSliceToRAS())
            normal = np.cross(matrix[:3, 0], matrix[:3, 1])
            if abs((position - matrix[:3, 3]) @ normal) < 0.01 * np.linalg.norm(normal):
                return matrix
        return self._orientation(volumeNode, "axial")
